//! What a PTX text declares: a kernel's parameters, and the architecture it is written for.

/// The bytes of each parameter of kernel `entry`; none if the text has no such kernel or a parameter is neither a
/// scalar nor an array of bytes.
pub(crate) fn parameter_bytes(ptx: &str, entry: &str) -> Option<Vec<usize>> {
    let text = without_comments(ptx);
    let after_name = text.split(".entry").skip(1).find_map(|rest| {
        let rest = rest.trim_start().strip_prefix(entry)?;
        // A longer name that begins alike is another kernel.
        (!rest.starts_with(is_of_name)).then_some(rest)
    })?;
    let Some(parameters) = after_name.trim_start().strip_prefix('(') else {
        return Some(Vec::new()); // PTX lets an empty list be left out
    };
    let parameters = &parameters[..parameters.find(')')?];
    if parameters.trim().is_empty() {
        return Some(Vec::new());
    }
    parameters.split(',').map(declared_bytes).collect()
}

/// The architecture with features of its own that the text is written for: 90 for `.target sm_90a`.
pub(crate) fn accelerated_target(ptx: &str) -> Option<u32> {
    let text = without_comments(ptx);
    let target = text.split(".target").nth(1)?.lines().next()?;
    let name = target.split([',', ' ', '\t']).find(|word| !word.is_empty())?;
    name.trim().strip_prefix("sm_")?.strip_suffix('a')?.parse().ok()
}

/// What PTX allows within a name.
fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%')
}

/// The bytes of one declaration such as `.param .u64 .ptr .global .align 16 q` or `.param .align 64 .b8 q[128]`.
fn declared_bytes(declaration: &str) -> Option<usize> {
    if let Some((scalar, count)) = declaration.split_once('[') {
        let count: usize = count.trim().strip_suffix(']')?.trim().parse().ok()?;
        return scalar.split_whitespace().any(|word| word == ".b8").then_some(count);
    }
    declaration.split_whitespace().find_map(|word| match word {
        ".b64" | ".u64" | ".s64" | ".f64" => Some(8),
        ".b32" | ".u32" | ".s32" | ".f32" => Some(4),
        ".b16" | ".u16" | ".s16" | ".f16" => Some(2),
        ".b8" | ".u8" | ".s8" => Some(1),
        _ => None,
    })
}

fn without_comments(ptx: &str) -> String {
    let mut kept = String::with_capacity(ptx.len());
    let mut rest = ptx;
    while let Some(start) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        kept.push_str(&rest[..start]);
        let comment = &rest[start..];
        let (end, blank) = if comment.starts_with("//") {
            (comment.find('\n'), "")
        } else {
            (comment[2..].find("*/").map(|end| end + 4), " ")
        };
        kept.push_str(blank);
        rest = &comment[end.unwrap_or(comment.len())..];
    }
    kept + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "
        .version 7.0
        .target sm_80 // not sm_90a
        /* .entry other(.param .u32 x) */
        .visible .entry add_more(.param .u32 x) { ret; }
        .visible .entry add(
            .param .u64 .ptr .global .align 16 a, // an address, (really)
            .param .f32 factor,
            .param .s32 count
        )
        .maxntid 128, 1, 1
        { ret; }
        .entry nothing { ret; }
        .entry none ( ) { ret; }
        .entry structure(.param .align 8 .b8 s[16], .param .u32 n) { ret; }
        .entry floats(.param .f32 s[16]) { ret; }
    ";

    #[test]
    fn parameters_are_read_in_order_with_their_bytes() {
        assert_eq!(parameter_bytes(PTX, "add"), Some(vec![8, 4, 4]));
        assert_eq!(parameter_bytes(PTX, "add_more"), Some(vec![4]));
    }

    #[test]
    fn a_kernel_may_have_no_parameters() {
        assert_eq!(parameter_bytes(PTX, "nothing"), Some(vec![]));
        assert_eq!(parameter_bytes(PTX, "none"), Some(vec![]));
    }

    #[test]
    fn an_array_of_bytes_is_as_long_as_it_says() {
        assert_eq!(parameter_bytes(PTX, "structure"), Some(vec![16, 4]));
        assert_eq!(parameter_bytes(PTX, "floats"), None);
    }

    #[test]
    fn names_in_comments_and_parts_of_names_are_no_kernels() {
        assert_eq!(parameter_bytes(PTX, "other"), None);
        assert_eq!(parameter_bytes(PTX, "ad"), None);
        assert_eq!(parameter_bytes("", "add"), None);
        assert_eq!(parameter_bytes(".entry add(", "add"), None);
    }

    #[test]
    fn only_a_target_that_ends_in_a_is_accelerated() {
        assert_eq!(accelerated_target(PTX), None);
        assert_eq!(accelerated_target(".version 8.0\n.target sm_90a\n"), Some(90));
        assert_eq!(accelerated_target(".target sm_100a, debug\n"), Some(100));
        assert_eq!(accelerated_target(""), None);
    }

    #[test]
    fn comments_that_never_end_end_with_the_text() {
        assert_eq!(without_comments("a /* b"), "a  ");
        assert_eq!(without_comments("a // b"), "a ");
        assert_eq!(without_comments("a /*/ b */ c // d\ne"), "a   c \ne");
    }
}
