from vidkernels.cli import main

main()
