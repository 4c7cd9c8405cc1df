//! Control flow on the GPU: closures, so that it cannot be taken for Rust's.
use super::Builder;
use super::scope::{Cta, Thread, Warp};
use super::value::Val;
use super::warpgroup::Warpgroup;
use crate::ops::control::{Again, Else, EndIf, If, SkipElse, While};
use crate::types::Pred;

impl Builder {
    #[track_caller]
    fn if_else(&self, cond: Val<'_, Pred>, uniform: bool, then: impl FnOnce(), other: Option<impl FnOnce()>) {
        let (else_label, end) = (self.label(), self.label());
        self.emit(If { cond: cond.src, other: else_label, uniform });
        let before = self.copies.borrow().state();
        then();
        let after = self.copies.borrow().state();
        assert_eq!(before, after, "an `if` changes which copies are in flight: commit outside of it");
        match other {
            Some(other) => {
                self.emit(SkipElse { end });
                self.place(else_label);
                self.emit(Else { end });
                other();
                assert_eq!(
                    before,
                    self.copies.borrow().state(),
                    "an `else` changes which copies are in flight"
                );
            }
            None => self.place(else_label),
        }
        self.place(end);
        self.emit(EndIf);
    }

    #[track_caller]
    fn while_loop<'k>(&'k self, cond: impl FnOnce() -> Val<'k, Pred>, body: impl FnOnce()) {
        let (top, exit) = (self.label(), self.label());
        let before = self.copies.borrow().state();
        self.place(top);
        let cond = cond();
        self.emit(While { cond: cond.src, exit });
        let products = self.products.borrow().under_way();
        body();
        assert_eq!(
            products,
            self.products.borrow().under_way(),
            "a loop changes how many products are under way"
        );
        assert_eq!(before, self.copies.borrow().state(), "a loop changes which copies are in flight");
        self.emit(Again { top });
        self.place(exit);
    }
}

type Never = fn();

macro_rules! control {
    ($($scope:ident $uniform:literal $($who:literal)*;)*) => {$(
        impl<'k> $scope<'k> {
            #[doc = concat!("Where `cond` holds. ", $($who),*)]
            #[track_caller]
            pub fn when(self, cond: Val<'k, Pred>, then: impl FnOnce(Self)) {
                self.0.if_else(cond, $uniform, || then(self), None::<Never>);
            }

            #[doc = concat!("One way or the other. ", $($who),*)]
            #[track_caller]
            pub fn when_else(self, cond: Val<'k, Pred>, then: impl FnOnce(Self), other: impl FnOnce(Self)) {
                self.0.if_else(cond, $uniform, || then(self), Some(|| other(self)));
            }
        }
    )*};
}
control! {
    Cta true "All threads of the block agree.";
    Warpgroup true "All threads of the warpgroup agree.";
    Warp true "All lanes of the warp agree.";
    Thread false "Threads may differ; nothing that needs the whole warp can be done inside.";
}

macro_rules! loops {
    ($($scope:ident $who:literal;)*) => {$(
        impl<'k> $scope<'k> {
            #[doc = concat!("As long as `cond`, on which ", $who, " agree; otherwise as [`Cta::while_`].")]
            #[track_caller]
            pub fn while_(self, cond: impl FnOnce() -> Val<'k, Pred>, body: impl FnOnce(Self)) {
                self.0.while_loop(cond, || body(self));
            }
        }
    )*};
}
loops! {
    Warpgroup "all threads of the warpgroup";
    Warp "all lanes of the warp";
    Thread "all lanes of the warp that are here";
}

impl<'k> Cta<'k> {
    /// As long as `cond`, which is evaluated before each round and on which all threads agree.
    ///
    /// # Panics
    /// While building, if a round leaves other copies in flight than it found: the count that the wait prints would
    /// be wrong from the second round on.
    #[track_caller]
    pub fn while_(self, cond: impl FnOnce() -> Val<'k, Pred>, body: impl FnOnce(Self)) {
        self.0.while_loop(cond, || body(self));
    }
}
