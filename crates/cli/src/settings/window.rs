//! A window as text: `LEFT,RIGHT`, where -1 is no bound.

use signflash_core::Window;

/// What it must look like.
pub(super) const EXPECTED: &str = "LEFT,RIGHT, two whole numbers, -1 for no bound";

/// Reads `40,17`, and Python's `(40, 17)` and `[40, 17]`; `None` and -1 are no bound, for a side or for both.
pub(super) fn read(text: &str) -> Option<Window> {
    let text = text.trim();
    let bare = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    let bare = bare.or_else(|| text.strip_prefix('[')?.strip_suffix(']')).unwrap_or(text);
    match bare.split_once(',') {
        Some((left, right)) => Some(Window { left: side(left)?, right: side(right)? }),
        None => side(bare)?.is_none().then_some(Window::FULL),
    }
}

/// One side: `None` if it is no side, and `Some(None)` if it has no bound.
fn side(text: &str) -> Option<Option<usize>> {
    match text.trim().to_ascii_lowercase().as_str() {
        "-1" | "none" | "null" => Some(None),
        number => number.parse().ok().map(Some),
    }
}

/// The same, as clap wants it.
pub(crate) fn parse(text: &str) -> Result<Window, String> {
    read(text).ok_or_else(|| format!("expected {EXPECTED}"))
}

/// As the command line takes it.
pub(crate) fn write(window: Window) -> String {
    let side = |side: Option<usize>| side.map_or("-1".to_string(), |side| side.to_string());
    format!("{},{}", side(window.left), side(window.right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_tuples_lists_and_none_are_understood() {
        let window = Window { left: Some(40), right: Some(17) };
        for text in ["40,17", " 40 , 17", "(40, 17)", "[40,17]"] {
            assert_eq!(read(text), Some(window), "{text}");
        }
        assert_eq!(read("(None, 0)"), Some(Window::CAUSAL));
        for text in ["-1,-1", "None", "null", "-1", "(-1, -1)"] {
            assert_eq!(read(text), Some(Window::FULL), "{text}");
        }
        for window in [window, Window::CAUSAL, Window::FULL] {
            assert_eq!(read(&write(window)), Some(window));
        }
    }

    #[test]
    fn anything_else_is_no_window() {
        for text in ["", "40", "40,17,3", "-2,0", "40,1.5", "(40, 17", "40;17", ",", "true", "1e3,0"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
