//! Is the committed code of `nomad-proto` up to date?

mod regenerate;

#[test]
fn generated_code_is_current() {
    regenerate::check(env!("CARGO_MANIFEST_DIR").as_ref());
}
