// Project 3D Gaussians into cameras (EWA splatting), and the way back to every parameter.
//
//   p = R m + t,  (x, y) = focal * p.xy / p.z + centre          the camera is [R t; 0 1], Ks holds focal and centre
//   cov = V V^T with V = J R M,  M = rotation(quat) diag(scale)   J: Jacobian of the line above at p
//   conic = (cov + eps2d I)^-1,  compensation = sqrt(det cov / det(cov + eps2d I)), at least kFloor
//   extent = kExtent * sqrt(diag(cov + eps2d I))
//
// Without scales, `shapes` are covariances (xx, xy, xz, yy, yz, zz) instead of quaternions (w, x, y, z).
// Gaussians outside [near, far], beside the image, no wider than radius_clip, flat, or with anything not finite have
// zeros in every output (an extent is else positive), and get and give no gradient.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

constexpr int kProjectBlock = 256;  // Gaussians whose gradients to a camera are added before the rest
constexpr int kProjectCamera = 16;  // of those: 3x3 R, t, focal, centre

struct ProjectGaussians {
  const void* means;     // [B, N, 3]
  const void* shapes;    // [B, N, 4] or [B, N, 6]
  const void* scales;    // [B, N, 3] or null
  const void* viewmats;  // [B, C, 4, 4]
  const void* Ks;        // [B, C, 3, 3]
  void* means2d;         // [B, C, N, 2]
  void* conics;          // [B, C, N, 3]
  void* depths;          // [B, C, N]
  void* extents;         // [B, C, N, 2]
  void* compensations;   // [B, C, N]
  int64_t batch, count, views;
  double width, height, eps2d, near_plane, far_plane, radius_clip;
  bool ortho;
  Element element;
};

struct ProjectGaussiansBackward {
  const void *grad_means2d, *grad_conics, *grad_depths, *grad_extents, *grad_compensations;  // as the outputs
  const void *means, *shapes, *scales, *viewmats, *Ks;
  const void* extents;
  void *grad_means, *grad_shapes, *grad_scales;
  void *grad_viewmats, *grad_Ks;  // written if partial is there, else left alone
  double* partial;                // [B, ceil(N / kProjectBlock), C, kProjectCamera] or null
  int64_t batch, count, views;
  double width, height, eps2d;
  bool ortho;
  Element element;
};

VK_CPU_KERNEL(project_gaussians, (const ProjectGaussians& a))
VK_CPU_KERNEL(project_gaussians_backward, (const ProjectGaussiansBackward& a))

void project_gaussians_cuda(const ProjectGaussians& a, void* stream);
void project_gaussians_backward_cuda(const ProjectGaussiansBackward& a, void* stream);

}  // namespace vk
