//! Is the committed code of `steppe-proto` up to date?

#[path = "../../nomad/tests/regenerate/mod.rs"]
mod regenerate;

#[test]
fn generated_code_is_current() {
    regenerate::check(env!("CARGO_MANIFEST_DIR").as_ref());
}
