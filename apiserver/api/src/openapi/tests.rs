use super::*;

#[test]
fn nothing_for_an_unknown_group() {
    assert_eq!(document("no.such.group", "v1"), None);
}
