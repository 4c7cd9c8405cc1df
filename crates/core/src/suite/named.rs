//! The macro that takes the list of cases, and makes a test of each.

/// Takes the list of cases; makes of it [`NAMES`], [`case`] and the macro [`test_implementation`].
macro_rules! named_cases {
    ($dollar:tt $($name:ident => $case:expr,)*) => {
        /// The names of all cases.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];

        /// The case of a name.
        ///
        /// ```
        /// use signflash_core::suite::{NAMES, case};
        /// assert!(NAMES.iter().all(|name| case(name).is_some()));
        /// ```
        pub fn case(name: &str) -> Option<Case> {
            match name {
                $(stringify!($name) => Some($case),)*
                _ => None,
            }
        }

        /// Makes one `#[test]` of every case of the suite, run on the [`Implementation`] that the expression gives.
        ///
        /// ```
        /// use signflash_core::suite::{Implementation, Reference, RunError};
        /// use signflash_core::{Element, GradInputs, Gradients, Inputs, Outputs, Problem};
        ///
        /// struct Mine;
        ///
        /// impl Implementation for Mine {
        ///     fn name(&self) -> String {
        ///         "mine".to_string()
        ///     }
        ///     fn forward<T: Element>(
        ///         &self,
        ///         problem: &Problem,
        ///         inputs: &Inputs<'_, T>,
        ///         outputs: &mut Outputs<'_, T>,
        ///     ) -> Result<(), RunError> {
        ///         Reference.forward(problem, inputs, outputs) // yours here
        ///     }
        ///     fn backward<T: Element>(
        ///         &self,
        ///         problem: &Problem,
        ///         inputs: &GradInputs<'_, T>,
        ///         gradients: &mut Gradients<'_, T>,
        ///     ) -> Result<(), RunError> {
        ///         Reference.backward(problem, inputs, gradients)
        ///     }
        /// }
        ///
        /// mod mine {
        ///     signflash_core::test_implementation!(super::Mine);
        /// }
        /// ```
        ///
        /// [`Implementation`]: crate::suite::Implementation
        #[macro_export]
        macro_rules! test_implementation {
            ($dollar implementation:expr) => {
                $(
                    #[test]
                    fn $name() {
                        $crate::suite::check(stringify!($name), &$dollar implementation);
                    }
                )*

                #[test]
                fn the_backward_drops_what_the_forward_drops() {
                    $crate::suite::check_backward_drops::<f32, _>(&$dollar implementation);
                    $crate::suite::check_backward_drops::<$crate::f16, _>(&$dollar implementation);
                    $crate::suite::check_backward_drops::<$crate::bf16, _>(&$dollar implementation);
                }

                #[test]
                fn scores_of_every_binade_by_their_scale() {
                    $crate::suite::check_binades($crate::suite::LargeBy::Scale, &$dollar implementation);
                }

                #[test]
                fn scores_of_every_binade_by_their_operands() {
                    $crate::suite::check_binades($crate::suite::LargeBy::Operands, &$dollar implementation);
                }

                #[test]
                fn scores_of_any_size_of_one_query() {
                    $crate::suite::check_binades($crate::suite::LargeBy::OneQuery, &$dollar implementation);
                }
            };
        }
    };
}

pub(super) use named_cases;
