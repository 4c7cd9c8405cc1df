//! The page "From Rust" shows this crate's example, which is compiled.

#[test]
fn the_page_shows_the_example() {
    let (page, example) = (include_str!("../../../docs/rust.md"), include_str!("../examples/from-rust.rs"));
    assert!(page.contains(example), "docs/rust.md shows another program than examples/from-rust.rs");
}
