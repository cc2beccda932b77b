"""A small ray tracer: scenes of spheres and boxes, cameras around them, images with the rays that made them."""

from __future__ import annotations

import numpy as np

LIGHT = np.array([0.5, 0.8, 0.33]) / np.linalg.norm([0.5, 0.8, 0.33])
FIELD = 0.7
"""Half the image plane's width at distance 1."""


def scene(rng: np.random.Generator, n_objects: int = 4) -> dict[str, np.ndarray]:
    """Draw spheres and boxes: kind (0 or 1), centre, size and colour of each, and the background's colour."""
    return {
        "kind": rng.integers(0, 2, n_objects),
        "centre": rng.uniform(-0.6, 0.6, (n_objects, 3)),
        "size": rng.uniform(0.25, 0.5, n_objects),
        "colour": rng.uniform(0.1, 1.0, (n_objects, 3)),
        "background": rng.uniform(0.0, 0.8, 3),
    }


def cameras(rng: np.random.Generator, n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Origins [n, 3] and unit directions [n, size, size, 3] of cameras that look at the middle.

    They stand 2.6 away, on an arc of 57 degrees: with cameras all around, models of this size took nothing from the
    input views within 300 steps, whatever mixes their tokens.
    """
    angle, height = rng.uniform(-0.5, 0.5, n), rng.uniform(0.0, 0.4, n)
    flat = np.sqrt(1 - height**2)
    origin = 2.6 * np.stack([flat * np.cos(angle), height, flat * np.sin(angle)], axis=1)
    forward = -origin / 2.6
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    up = np.cross(right, forward)
    grid = (np.arange(size) + 0.5) / size * 2 - 1
    across, down = np.meshgrid(FIELD * grid, -FIELD * grid)
    rays = forward[:, None, None] + across[None, ..., None] * right[:, None, None]
    rays = rays + down[None, ..., None] * up[:, None, None]
    return origin, rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def render(objects: dict[str, np.ndarray], origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] of rays [..., 3] from origins that broadcast to them; shaded by one light, no shadows."""
    origin = np.broadcast_to(origin, rays.shape)
    nearest = np.full(rays.shape[:-1], np.inf)
    image = objects["background"] + 0.1 * (rays[..., 1:2] + 1)
    for kind, centre, size, colour in zip(
        *(objects[name] for name in ("kind", "centre", "size", "colour")), strict=True
    ):
        distance, normal = (_box if kind else _sphere)(origin - centre, rays, size)
        front = distance < nearest
        shade = 0.35 + 0.65 * np.clip(normal @ LIGHT, 0, 1)
        image = np.where(front[..., None], colour * shade[..., None], image)
        nearest = np.where(front, distance, nearest)
    return image


def _sphere(origin: np.ndarray, rays: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    along = (origin * rays).sum(-1)
    inside = along**2 - (origin**2).sum(-1) + radius**2
    distance = np.where(inside > 0, -along - np.sqrt(np.maximum(inside, 0)), np.inf)
    distance = np.where(distance > 0, distance, np.inf)
    reached = np.where(np.isfinite(distance), distance, 0)
    return distance, (origin + reached[..., None] * rays) / radius


def _box(origin: np.ndarray, rays: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    half = 0.8 * half
    safe = np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    near = (-np.sign(safe) * half - origin) / safe
    far = (np.sign(safe) * half - origin) / safe
    enter, leave = near.max(-1), far.min(-1)
    distance = np.where((enter < leave) & (enter > 0), enter, np.inf)
    face = np.eye(3)[near.argmax(-1)] * -np.sign(safe)
    return distance, face
