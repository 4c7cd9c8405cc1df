//! How settings are declared: the macro that makes all lists of them.

use super::{Axes, Overrides, Settings};
use serde_json::Value;
use signflash_core::Problem;

/// Makes flags, what they override, how it is read and written, other libraries' words for it, and bench's axes of
///
/// ```text
/// /// What `--help` says.
/// #[arg(clap's attributes)]
/// name: type of the flag as type of the setting {
///     in files "what it must look like", reader of text, |settings, problem| its text,
///     elsewhere [what other libraries call it, as `plain` spells it],
///     in bench "what its table calls it" { /// help  #[arg(clap's attributes of the axis)] }     (or not at all)
/// }
/// ```
macro_rules! settings {
    ($(
        $(#[$about:meta])*
        $name:ident: $flag:ty as $kind:ty {
            in files $expected:literal, $read:expr, $write:expr,
            elsewhere [$($word:literal),*],
            $(in bench $column:literal { $(#[$axis:meta])* })?
        }
    )*) => {
        /// What the command line says; `None` where it says nothing.
        #[derive(Args, Clone, Debug, Default)]
        #[command(next_help_heading = "Settings (default: the file's, else as said)")]
        pub struct Overrides {
            $($(#[$about])* pub $name: Option<$flag>,)*
        }

        /// What is to be computed, apart from shapes.
        #[derive(Clone, Debug, Default, PartialEq)]
        #[allow(missing_docs)] // as in `Overrides`
        pub struct Settings {
            $(pub $name: $kind,)*
        }

        /// The settings that bench varies: a list of each.
        #[derive(Args, Clone, Debug)]
        pub struct Axes {
            $($($(#[$axis])* pub $name: Vec<$flag>,)?)*
        }

        /// All of them.
        const SETTINGS: &[Setting] = &[$(Setting {
            name: stringify!($name),
            words: &[$($word),*],
            is_given: |overrides| overrides.$name.is_some(),
            says_the_same: |one, other| {
                let read: fn(&str) -> Option<$flag> = $read;
                let kind = |text: &str| read(text.trim()).map(<$kind>::from);
                let other = other.map_or_else(|| Some(Default::default()), kind);
                other.is_some() && kind(one) == other
            },
            text: |settings, problem| {
                let write: fn(&Settings, &Problem) -> String = $write;
                write(settings, problem)
            },
        },)*];

        /// Those that bench varies.
        pub(crate) const AXES: &[Axis] = &[$($(Axis {
            name: $column,
            vary: |settings, axes| {
                let with = |&$name: &$flag| Settings { $name: $name.into(), ..settings.clone() };
                axes.$name.iter().map(with).collect()
            },
            text: |settings| settings.$name.text(),
            cell: |settings| settings.$name.cell(),
            json: |settings| settings.$name.json(),
        },)?)*];

        impl Settings {
            /// The command line's, else the file's, else the default.
            ///
            /// # Errors
            /// [`Error::Setting`] for a value in the file that does not parse, unless the command line overrides it.
            pub fn resolve(overrides: &Overrides, metadata: &Metadata) -> Result<Self, Error> {
                Ok(Self {
                    $($name: match overrides.$name {
                        Some(given) => given.into(),
                        None => in_file(metadata, stringify!($name), $expected, $read)?
                            .map_or_else(Default::default, <$flag>::into),
                    },)*
                })
            }
        }
    };
}
pub(super) use settings;

/// A setting as one of many.
pub(super) struct Setting {
    /// In a file.
    pub(super) name: &'static str,
    /// What other libraries call it, as `plain` spells it.
    pub(super) words: &'static [&'static str],
    /// Whether the command line says it.
    pub(super) is_given: fn(&Overrides) -> bool,
    /// Whether two values in a file mean the same; without the other, whether the one is the default.
    pub(super) says_the_same: fn(&str, Option<&str>) -> bool,
    /// As metadata of a result; it reads back as itself.
    pub(super) text: fn(&Settings, &Problem) -> String,
}

impl Setting {
    /// The setting of that name.
    pub(super) fn of(name: &str) -> Option<&'static Self> {
        super::SETTINGS.iter().find(|setting| setting.name == name)
    }
}

/// The flag that says a setting.
pub(super) fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// A setting that bench varies.
pub(crate) struct Axis {
    /// In bench's table and JSON.
    pub(crate) name: &'static str,
    pub(super) vary: fn(&Settings, &Axes) -> Vec<Settings>,
    /// As the command line takes it.
    pub(crate) text: fn(&Settings) -> String,
    /// For people.
    pub(crate) cell: fn(&Settings) -> String,
    /// For programs.
    pub(crate) json: fn(&Settings) -> Value,
}

impl Axes {
    /// All combinations, the last axis varying first.
    pub(crate) fn combinations(&self, rest: &Settings) -> Vec<Settings> {
        let vary = |all: Vec<Settings>, axis: &Axis| {
            all.iter().flat_map(|settings| (axis.vary)(settings, self)).collect()
        };
        super::AXES.iter().fold(vec![rest.clone()], vary)
    }
}
