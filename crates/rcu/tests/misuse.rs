//! Mistakes that don't compile: each file in `misuse/` is one, with what the compiler says.
//!
//! `TRYBUILD=overwrite` writes down what the compiler says now.
#![cfg(not(any(loom, shuttle)))]

#[test]
fn what_is_a_mistake_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/misuse/*.rs");
}
