// A thread copies a strip of x with its borders, multiplies it block by block, and turns the sums into bytes while they
// are in its cache. A tail goes on with these: what the first layer draws, a few rows at a time, never leaves the
// cache.
//
//   rows between the two layers    [last rows of the tile before][rows of this tile]
#include "ops/conv_int8/conv_int8_layer.h"

namespace vk::VK_ISA {
namespace {

constexpr int64_t kStripBytes = 1 << 18;  // it should stay in the L2 cache, beside weights
constexpr int64_t kTileBytes = 1 << 18;   // so should the rows between two layers

/// Image rows of a strip: about kStripBytes, but enough positions, and strips enough for many threads.
int64_t strip_rows(const Layer& layer) {
  const ConvInt8& a = layer.a;
  int64_t rows = kStripBytes / layer.row_bytes() - a.kh + 1;
  if (rows > ceil_div(a.batch * a.height, 16)) rows = ceil_div(a.batch * a.height, 16);
  const int64_t least = ceil_div(512, layer.pitch()) < 4 ? 4 : ceil_div(512, layer.pitch());
  rows = rows < least ? least : rows;
  rows = rows < a.height ? rows : a.height;
  return ceil_div(a.height, ceil_div(a.height, rows));
}

/// Both layers of the rows of the frame that belong to rows [begin, end) of x.
void run_tail(const Layer& first, const Layer& head, const uint8_t* x, int64_t begin, int64_t end, uint8_t* frame) {
  const ConvInt8 &a = first.a, &b = head.a;
  const int64_t span = b.width * b.in, reach = b.kh / 2, stop = end * a.scale;
  int64_t tile = kTileBytes / (a.scale * span);
  tile = tile < 1 ? 1 : tile < end - begin ? tile : end - begin;
  const int64_t most = tile * a.scale + 2 * reach + a.scale;
  Scratch<uint8_t> between(size_t(most * span)), strip(size_t(first.strip_bytes(tile))),
      head_strip(size_t(head.strip_bytes(most)));
  int64_t next = (begin * a.scale - reach) / a.scale;  // row of x
  next = next < 0 ? 0 : next;
  Rows rows{between.data(), next * a.scale};  // of the frame
  int64_t there = rows.first;                 // the end of those
  for (int64_t y = begin * a.scale; y < stop;) {
    const int64_t count = a.height - next < tile ? a.height - next : tile;
    first.run({x, 0}, next, count, strip.data(), between.data() + (there - rows.first) * span);
    next += count, there += count * a.scale;
    int64_t until = there == b.height ? there : there - reach;
    until = until < stop ? until : stop;
    if (until > y) {
      head.run(rows, y, until - y, head_strip.data(), frame + y * b.scale * b.width * b.scale * b.out);
      y = until;
    }
    const int64_t keep = y - reach > rows.first ? y - reach : rows.first;
    std::memmove(between.data(), between.data() + (keep - rows.first) * span, size_t((there - keep) * span));
    rows.first = keep;
  }
}

}  // namespace

void conv_int8(const ConvInt8& a) {
  if (a.batch * a.height * a.width * a.out == 0) return;
  const Layer layer(a, find_unit(a.avoid));
  const int64_t rows = strip_rows(layer), strips = ceil_div(a.height, rows);
  parallel_for(a.batch * strips, 1, [&](int64_t i0, int64_t i1) {
    Scratch<uint8_t> strip(size_t(layer.strip_bytes(rows)));
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t b = i / strips, first = i % strips * rows, left = a.height - first;
      layer.run({a.x + b * a.height * a.width * a.in, 0}, first, left < rows ? left : rows, strip.data(),
                a.result + (b * a.height + first) * a.scale * a.width * a.scale * a.out);
    }
  });
}

void decode_tail(const ConvInt8& a, const ConvInt8& b) {
  if (b.batch * b.height * b.width * b.out == 0) return;
  const Unit unit = find_unit(a.avoid);
  const Layer first(a, unit), head(b, unit);
  parallel_for(a.batch * a.height, 4, [&](int64_t i0, int64_t i1) {
    while (i0 < i1) {
      const int64_t image = i0 / a.height, begin = i0 % a.height;
      const int64_t end = i1 - image * a.height < a.height ? i1 - image * a.height : a.height;
      run_tail(first, head, a.x + image * a.height * a.width * a.in, begin, end,
               b.result + image * b.height * b.scale * b.width * b.scale * b.out);
      i0 += end - begin;
    }
  });
}

}  // namespace vk::VK_ISA
