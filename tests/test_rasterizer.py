"""The z-buffer against a reference that asks every pixel about every triangle."""

import numpy as np
import pytest
import torch

from common.view.rasterizer import interpolate, rasterize


def brute_force(vertices, faces, height, width):
    """Face, perspective-correct weights and depth of every pixel, by inverting each triangle's 3×3 matrix."""
    face_map, depth_map = np.full((height, width), -1), np.full((height, width), np.inf)
    weight_map = np.zeros((height, width, 3))
    for index, face in enumerate(faces):
        corners = vertices[face]
        if (corners[:, 2] <= 0).any():
            continue
        # Columns (x·z, y·z, z): a pixel ray (x, y, 1)·t inside the triangle has weights of one sign.
        matrix = np.stack([corners[:, 0] * corners[:, 2], corners[:, 1] * corners[:, 2], corners[:, 2]])
        if abs(np.linalg.det(matrix)) < 1e-12:
            continue
        inverse = np.linalg.inv(matrix)
        for y in range(height):
            for x in range(width):
                weights = inverse @ (x, y, 1.0)
                if weights.min() < 0:
                    continue
                depth = 1 / weights.sum()
                if depth < depth_map[y, x] - 1e-9:
                    face_map[y, x], depth_map[y, x], weight_map[y, x] = index, depth, weights * depth
    return face_map, weight_map, depth_map


def random_mesh(seed, count=30, size=24):
    rng = np.random.default_rng(seed)
    vertices = np.concatenate([rng.uniform(-6, size + 6, (count, 2)), rng.uniform(0.5, 3.0, (count, 1))], axis=1)
    faces = np.stack([rng.choice(count, 3, replace=False) for _ in range(40)])
    return torch.from_numpy(vertices), torch.from_numpy(faces)


def grid_mesh(cells, size, seed=0):
    """A wobbly sheet of triangles over an image of `size` pixels and beyond."""
    rng = np.random.default_rng(seed)
    line = np.linspace(-3.0, size + 2.0, cells + 1)
    x, y = np.meshgrid(line, line)
    wobble = rng.uniform(-0.3, 0.3, (2, *x.shape)) * (line[1] - line[0])
    depth = rng.uniform(0.9, 1.1, x.shape)
    corner = np.arange((cells + 1) ** 2).reshape(cells + 1, cells + 1)
    a, b, c, d = corner[:-1, :-1].ravel(), corner[:-1, 1:].ravel(), corner[1:, :-1].ravel(), corner[1:, 1:].ravel()
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])
    vertices = np.stack([x + wobble[0], y + wobble[1], depth], axis=-1).reshape(-1, 3)
    return torch.from_numpy(vertices), torch.from_numpy(faces)


@pytest.mark.parametrize("seed", range(4))
def test_every_pixel_sees_what_the_reference_sees(seed):
    vertices, faces = random_mesh(seed)
    found = rasterize(vertices[None], faces, 20, 24)
    face, weights, depth = brute_force(vertices.numpy(), faces.numpy(), 20, 24)
    np.testing.assert_array_equal(found.face[0], face)
    np.testing.assert_allclose(found.barycentric[0], weights, atol=1e-6)
    np.testing.assert_allclose(found.depth[0], depth, rtol=1e-6)


def test_a_known_triangle_covers_its_pixels_with_its_weights():
    """Corners on pixel centres (1, 1), (4, 1), (1, 4): ten pixels, borders included."""
    vertices = torch.tensor([[[1.0, 1.0, 2.0], [4.0, 1.0, 2.0], [1.0, 4.0, 2.0]]])
    found = rasterize(vertices, torch.tensor([[0, 1, 2]]), 6, 6)
    covered = {(int(x), int(y)) for y, x in torch.nonzero(found.face[0] == 0)}
    assert covered == {(x, y) for x in range(1, 5) for y in range(1, 5) if x + y <= 5}
    torch.testing.assert_close(found.barycentric[0, 1, 1], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(found.barycentric[0, 2, 2], torch.tensor([1 / 3, 1 / 3, 1 / 3]))
    torch.testing.assert_close(found.barycentric[0, 1, 3], torch.tensor([1 / 3, 2 / 3, 0.0]))
    assert found.depth[0, 2, 2] == 2 and found.depth[0, 0, 0] == torch.inf


def test_the_nearer_face_wins_and_a_tie_goes_to_the_lower_index():
    square = torch.tensor([[-9.0, -9.0], [30.0, -9.0], [-9.0, 30.0]])
    depths = torch.tensor([2.0, 1.0, 1.0, 3.0]).repeat_interleave(3)
    vertices = torch.cat([square.repeat(4, 1), depths[:, None]], dim=1)
    found = rasterize(vertices[None], torch.arange(12).reshape(4, 3), 8, 8)
    assert (found.face == 1).all() and (found.depth == 1).all()


@pytest.mark.parametrize(("cells", "dtype"), [(40, torch.float32), (7, torch.float32), (90, torch.float64)])
def test_shared_edges_leave_no_hole(cells, dtype):
    """A sheet wider than the image, also with triangles smaller than pixels, hides every pixel."""
    vertices, faces = grid_mesh(cells, 64)
    found = rasterize(vertices[None].to(dtype), faces, 64, 64)
    assert (found.face >= 0).all()


def test_edges_through_pixel_centres_leave_no_hole():
    """A fan round a pixel centre whose spokes run through pixel centres."""
    ring = torch.tensor([[9.0, 0], [9, 9], [0, 9], [-9, 9], [-9, 0], [-9, -9], [0, -9], [9, -9]]) + 10
    vertices = torch.cat([torch.tensor([[10.0, 10.0]]), ring])
    vertices = torch.cat([vertices, torch.ones(9, 1)], dim=1)
    faces = torch.tensor([[0, 1 + k, 1 + (k + 1) % 8] for k in range(8)])
    found = rasterize(vertices[None], faces, 21, 21)
    assert (found.face[0, 1:20, 1:20] >= 0).all() and (found.face >= 0).sum() == 19 * 19


def test_attributes_are_interpolated_in_space_and_not_on_screen():
    """A slanted strip: halfway on screen between depths 1 and 3 lies a quarter of the way in space."""
    vertices = torch.tensor([[[0.0, 0.0, 1.0], [8.0, 0.0, 3.0], [0.0, 8.0, 1.0], [8.0, 8.0, 3.0]]])
    faces = torch.tensor([[0, 1, 2], [1, 3, 2]])
    found = rasterize(vertices, faces, 9, 9)
    along = interpolate(torch.tensor([[0.0], [1.0], [0.0], [1.0]]), faces, found)
    torch.testing.assert_close(along[0, 4, 4, 0], torch.tensor(0.25))
    torch.testing.assert_close(found.depth[0, 4, 4], torch.tensor(1.5))


def test_interpolating_the_vertices_gives_the_pixels_back():
    """x·z, y·z and z are affine in space: interpolated and divided they are the pixel's own position."""
    vertices, faces = grid_mesh(12, 32)
    found = rasterize(vertices[None], faces, 32, 32)
    points = interpolate(torch.cat([vertices[:, :2] * vertices[:, 2:], vertices[:, 2:]], dim=1), faces, found)[0]
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    torch.testing.assert_close((points[..., :2] / points[..., 2:]).float(), torch.stack([x, y], dim=-1))
    torch.testing.assert_close(points[..., 2], found.depth[0], rtol=1e-6, atol=0)


def test_faces_that_reach_behind_the_camera_or_off_the_image_are_left_out():
    triangle = torch.tensor([[1.0, 1.0, 1.0], [6.0, 1.0, 1.0], [1.0, 6.0, 1.0]])
    behind = triangle * torch.tensor([1.0, 1.0, -1.0])
    crossing, broken = triangle.clone(), triangle.clone()
    crossing[0, 2], broken[2, 0] = -0.5, torch.nan
    beside = triangle + torch.tensor([100.0, 0.0, 0.0])
    flat = triangle[[0, 1, 1]]
    meshes = torch.stack([behind, crossing, broken, beside, flat])
    found = rasterize(meshes, torch.tensor([[0, 1, 2]]), 8, 8)
    assert (found.face == -1).all() and (found.barycentric == 0).all() and found.depth.isinf().all()
    assert (interpolate(triangle, torch.tensor([[0, 1, 2]]), found) == 0).all()


def test_images_of_a_batch_do_not_see_each_other():
    """Also with other faces for each image."""
    first, faces_first = random_mesh(1)
    second, faces_second = random_mesh(2)
    together = rasterize(torch.stack([first, second]), torch.stack([faces_first, faces_second]), 20, 24)
    for item, (vertices, faces) in enumerate([(first, faces_first), (second, faces_second)]):
        alone = rasterize(vertices[None], faces, 20, 24)
        assert all(torch.equal(a[item], b[0]) for a, b in zip(together, alone, strict=True))


def test_both_sides_of_a_face_are_seen():
    vertices, faces = random_mesh(3)
    turned = rasterize(vertices[None], faces.flip(-1), 20, 24)
    assert torch.equal(turned.face, rasterize(vertices[None], faces, 20, 24).face)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_and_cpu_agree():
    vertices, faces = grid_mesh(30, 64)
    on_cpu = rasterize(vertices[None].float(), faces, 64, 64)
    on_gpu = rasterize(vertices[None].float().cuda(), faces.cuda(), 64, 64)
    assert (on_cpu.face == on_gpu.face.cpu()).float().mean() > 0.999
    torch.testing.assert_close(on_cpu.depth, on_gpu.depth.cpu(), rtol=1e-4, atol=1e-4)
