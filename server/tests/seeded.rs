//! Bugs put in on purpose are in no program that is built without them.

#![allow(clippy::unwrap_used, missing_docs)]

#[test]
fn a_program_has_bugs_only_with_the_feature() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_domiciled")).unwrap();
    let variable = b"DOMICILE_SEEDED_BUG";
    let has = program.windows(variable.len()).any(|part| part == variable);
    assert_eq!(has, cfg!(feature = "seeded-bugs"));
}
