//! How much compiled kernels may take on disk.

use super::store::CubinStore;
use std::env;
use std::ffi::OsString;

const VARIABLE: &str = "SIGNFLASH_CACHE_MAX_MIB";

/// The bytes that `SIGNFLASH_CACHE_MAX_MIB` grants; 0 means that nothing is kept.
///
/// # Errors
/// A sentence, if it is no number.
pub(super) fn from_environment() -> Result<u64, String> {
    parse(env::var_os(VARIABLE))
}

fn parse(value: Option<OsString>) -> Result<u64, String> {
    let default = CubinStore::DEFAULT_LIMIT_BYTES;
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(default) };
    let mib = value.to_str().and_then(|text| text.trim().parse::<u64>().ok());
    mib.map(|mib| mib.saturating_mul(1 << 20)).ok_or_else(|| {
        format!(
            "{VARIABLE} is {value:?}, where a whole number of MiB is expected; compiled kernels may take {} MiB",
            default >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_so_many_mib_and_nothing_is_the_default() {
        assert_eq!(parse(Some("3".into())), Ok(3 << 20));
        assert_eq!(parse(Some("0".into())), Ok(0));
        assert_eq!(parse(Some(u64::MAX.to_string().into())), Ok(u64::MAX));
        for unset in [None, Some("".into())] {
            assert_eq!(parse(unset), Ok(CubinStore::DEFAULT_LIMIT_BYTES));
        }
    }

    #[test]
    fn anything_else_is_a_sentence() {
        for wrong in ["-1", "1.5", "1 GiB", "off"] {
            let problem = parse(Some(wrong.into())).unwrap_err();
            assert!(problem.starts_with(&format!("SIGNFLASH_CACHE_MAX_MIB is {wrong:?}")), "{problem}");
        }
    }
}
