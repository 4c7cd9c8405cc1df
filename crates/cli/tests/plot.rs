//! Pictures: that they are there, complete, and the same by either way.

mod common;

use common::{Dir, VECTORS, fail, input, succeed, vector, write};
use std::fs;

/// Width, height and pixels.
fn png(path: &std::path::Path) -> (usize, usize, Vec<u8>) {
    let mut reader = png::Decoder::new(common::source(path)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width as usize, info.height as usize, pixels)
}

#[test]
fn drawing_at_once_and_drawing_from_probs_give_the_same_picture() {
    let dir = Dir::new();
    fs::copy(vector(VECTORS[2]), dir.path("map.safetensors")).unwrap();
    let (input, probs) = (dir.file("map.safetensors"), dir.file("map.npz"));
    let (once, later) = (dir.file("once.png"), dir.file("later.png"));
    let view = ["--head", "1", "--batch", "1"];
    succeed(&[&["attend", &input, "--plot", &once, "--probs", "-o", &probs], &view[..]].concat());
    assert!(
        succeed(&[&["plot", &probs, "-o", &later], &view[..]].concat()).contains("drew head 1 of batch 1")
    );
    assert!(fs::read(&once).unwrap() == fs::read(&later).unwrap());
    let other = dir.file("other.png");
    succeed(&["plot", &probs, "-o", &other]);
    assert!(fs::read(&once).unwrap() != fs::read(&other).unwrap());
}

#[test]
fn pictures_have_colors_for_kept_dropped_and_hidden_and_some_letters() {
    let dir = Dir::new();
    let path = dir.file("map.png");
    succeed(&["attend", &vector(VECTORS[4]), "--plot", &path]);
    let (width, height, pixels) = png(path.as_ref());
    assert_eq!(pixels.len(), width * height * 3);
    let count =
        |wanted: &dyn Fn(&[u8; 3]) -> bool| pixels.as_chunks::<3>().0.iter().filter(|p| wanted(p)).count();
    let [hidden, ink] = [[236, 238, 241], [28, 32, 40]].map(|color| count(&|pixel| *pixel == color));
    let red = count(&|[r, g, b]| i32::from(*r) > i32::from(*g).max(i32::from(*b)) + 40);
    let blue = count(&|[r, g, b]| i32::from(*r) + 40 < i32::from(*g).max(i32::from(*b)));
    assert!(hidden > width * height / 5, "{hidden}");
    assert!(red > width * height / 20 && blue > width * height / 20, "{red} {blue}");
    assert!(ink > 2000, "no letters: {ink}");
}

#[test]
fn extreme_shapes_can_be_drawn() {
    let dir = Dir::new();
    for (seqlen_q, seqlen_k) in [(1, 1), (1, 3000), (3000, 1), (2, 1700), (7, 3)] {
        let (name, picture) = (dir.file("in.safetensors"), dir.file("map.png"));
        let settings = [("dropout_p", "0.5"), ("causal", "true")];
        write(&name, &input::<f32>([1, 1, seqlen_q, 4], [1, 1, seqlen_k, 4], &settings));
        succeed(&["attend", &name, "--plot", &picture]);
        let (width, height, _) = png(picture.as_ref());
        assert!((800..2400).contains(&width) && (800..2200).contains(&height), "{width} x {height}");
    }
}

#[test]
fn empty_maps_and_absent_heads_are_refused_before_anything_is_drawn() {
    let dir = Dir::new();
    let (name, picture) = (dir.file("in.safetensors"), dir.file("map.png"));
    write(&name, &input::<f32>([1, 2, 0, 4], [1, 2, 3, 4], &[]));
    fail(&["attend", &name, "--plot", &picture], 2, &["at least one entry", "0 queries"]);
    assert_eq!(dir.names(), ["in.safetensors"]);
}
