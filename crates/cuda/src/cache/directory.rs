//! Where compiled kernels are kept on disk.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// Where compiled kernels are kept on disk.
///
/// ```
/// use signflash_cuda::CacheDirectory;
/// match CacheDirectory::from_environment() {
///     CacheDirectory::At(directory) => println!("in {}", directory.display()),
///     CacheDirectory::Off => println!("nowhere, as asked for"),
///     CacheDirectory::NoHome => println!("nowhere, for want of a home directory"),
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheDirectory {
    /// In this directory.
    At(PathBuf),
    /// Nowhere: `SIGNFLASH_CACHE_DIR` is empty or `off`.
    Off,
    /// Nowhere: there is no home directory, and nothing names another.
    NoHome,
}

impl CacheDirectory {
    /// `SIGNFLASH_CACHE_DIR`, else `signflash` in `XDG_CACHE_HOME`, else `.cache/signflash` in the home directory.
    pub fn from_environment() -> Self {
        Self::choose(|name| env::var_os(name), env::home_dir())
    }

    fn choose(variable: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Self {
        if let Some(directory) = variable("SIGNFLASH_CACHE_DIR") {
            let off = directory.is_empty() || directory.eq_ignore_ascii_case("off");
            return if off { Self::Off } else { Self::At(directory.into()) };
        }
        // The XDG specification has relative paths ignored; an empty one is relative.
        let absolute = |path: &PathBuf| path.is_absolute();
        let xdg = variable("XDG_CACHE_HOME").map(PathBuf::from).filter(absolute);
        let home = || home.filter(absolute).map(|home| home.join(".cache"));
        xdg.or_else(home).map_or(Self::NoHome, |caches| Self::At(caches.join("signflash")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(variables: &[(&str, &str)], home: Option<&str>) -> CacheDirectory {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        CacheDirectory::choose(find, home.map(PathBuf::from))
    }

    fn at(path: &str) -> CacheDirectory {
        CacheDirectory::At(path.into())
    }

    #[test]
    fn the_variable_of_its_own_comes_first() {
        let variables = [("SIGNFLASH_CACHE_DIR", "/here"), ("XDG_CACHE_HOME", "/xdg")];
        assert_eq!(choose(&variables, Some("/home/me")), at("/here"));
    }

    #[test]
    fn an_empty_variable_or_off_turns_it_off() {
        for value in ["", "off", "OFF"] {
            assert_eq!(choose(&[("SIGNFLASH_CACHE_DIR", value)], Some("/home/me")), CacheDirectory::Off);
        }
    }

    #[test]
    fn then_come_xdg_and_home() {
        assert_eq!(choose(&[("XDG_CACHE_HOME", "/xdg")], Some("/home/me")), at("/xdg/signflash"));
        assert_eq!(choose(&[], Some("/home/me")), at("/home/me/.cache/signflash"));
    }

    #[test]
    fn a_relative_or_empty_xdg_directory_is_ignored() {
        for value in ["", "relative"] {
            assert_eq!(
                choose(&[("XDG_CACHE_HOME", value)], Some("/home/me")),
                at("/home/me/.cache/signflash")
            );
        }
    }

    #[test]
    fn a_missing_home_is_no_error() {
        assert_eq!(choose(&[], None), CacheDirectory::NoHome);
        assert_eq!(choose(&[], Some("")), CacheDirectory::NoHome);
        assert_eq!(choose(&[("XDG_CACHE_HOME", "/xdg")], None), at("/xdg/signflash"));
    }
}
