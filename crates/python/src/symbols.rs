//! C functions of a library that Python has loaded, found by their names at run time: nothing is linked.

use std::ffi::{CStr, CString, c_void};
use std::ptr::NonNull;

/// A library that is loaded, and stays so for as long as the process lives.
#[derive(Clone, Copy)]
pub(crate) struct Library(NonNull<c_void>);

impl Library {
    /// The one of this path, if it is loaded already.
    #[cfg(unix)]
    pub(crate) fn loaded(path: &str) -> Option<Self> {
        let path = CString::new(path).ok()?;
        // SAFETY: a path that ends; nothing is loaded, and so nothing is run.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        NonNull::new(library).map(Self)
    }

    #[cfg(not(unix))]
    pub(crate) fn loaded(_: &str) -> Option<Self> {
        None
    }

    /// The address of a function of it, or of those that it was linked with.
    #[cfg(unix)]
    pub(crate) fn symbol(self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: it is loaded; the name ends.
        NonNull::new(unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) })
    }

    #[cfg(not(unix))]
    pub(crate) fn symbol(self, _: &CStr) -> Option<NonNull<c_void>> {
        None
    }
}

/// Declares functions once: a field each, the symbol that it is, and its type. All must be there but the optional ones.
macro_rules! functions {
    (
        $(#[$doc:meta])*
        pub(crate) struct $Functions:ident {
            $($name:ident: $symbol:literal = fn($($argument:ty),*) $(-> $result:ty)?;)*
        }
        optional {
            $($maybe:ident: $maybe_symbol:literal = fn($($maybe_argument:ty),*) $(-> $maybe_result:ty)?;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $Functions {
            $(pub(crate) $name: unsafe extern "C-unwind" fn($($argument),*) $(-> $result)?,)*
            $(pub(crate) $maybe: Option<unsafe extern "C-unwind" fn($($maybe_argument),*) $(-> $maybe_result)?>,)*
        }

        impl $Functions {
            /// # Safety
            /// Functions of these names must have these types there.
            pub(crate) unsafe fn of(library: $crate::symbols::Library) -> Option<Self> {
                type Address = *mut std::ffi::c_void;
                $(
                    let $name = library.symbol($symbol)?.as_ptr();
                    // SAFETY: a function of this name has this type, by the caller's promise.
                    let $name = unsafe {
                        std::mem::transmute::<Address, unsafe extern "C-unwind" fn($($argument),*) $(-> $result)?>($name)
                    };
                )*
                $(
                    let $maybe = library.symbol($maybe_symbol).map(|found| {
                        // SAFETY: as above.
                        unsafe {
                            std::mem::transmute::<
                                Address,
                                unsafe extern "C-unwind" fn($($maybe_argument),*) $(-> $maybe_result)?,
                            >(found.as_ptr())
                        }
                    });
                )*
                Some(Self { $($name,)* $($maybe,)* })
            }
        }
    };
}

pub(crate) use functions;
