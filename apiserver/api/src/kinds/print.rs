//! Cells that several kinds' tables share.

use serde_json::Value;

use crate::{
    field::{entries, items, some_text, text},
    meta, time,
};

pub const NONE: &str = "<none>";
pub const UNSET: &str = "<unset>";

/// The name cell.
pub fn name(object: &Value) -> Value {
    meta::name(object).into()
}

/// The age cell.
pub fn age(object: &Value, now: i64) -> Value {
    time::age(meta::creation_timestamp(object), now).into()
}

/// A number, zero when it is unset.
pub fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// The names and the images of a template's containers, each joined by commas.
pub fn containers_and_images(object: &Value) -> (String, String) {
    let spec = object.pointer("/spec/template/spec").unwrap_or(&Value::Null);
    let all = |key| items(spec, "containers").iter().map(|c| text(c, key)).collect::<Vec<_>>().join(",");
    (all("name"), all("image"))
}

/// `a=b,c=d`, or `<none>`.
pub fn labels(value: &Value, key: &str) -> String {
    let shown: Vec<String> = entries(value, key).map(|(key, value)| format!("{key}={value}")).collect();
    or_none(shown.join(","))
}

/// A label selector in the form that `kubectl -l` reads.
pub fn selector(selector: &Value) -> String {
    let mut shown: Vec<(&str, String)> =
        entries(selector, "matchLabels").map(|(key, value)| (key, format!("{key}={value}"))).collect();
    for expression in items(selector, "matchExpressions") {
        let key = text(expression, "key");
        let mut values: Vec<&str> = items(expression, "values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        shown.push((
            key,
            match text(expression, "operator") {
                "In" => format!("{key} in ({values})"),
                "NotIn" => format!("{key} notin ({values})"),
                "Exists" => key.to_owned(),
                "DoesNotExist" => format!("!{key}"),
                other => format!("{key} {other} ({values})"),
            },
        ));
    }
    shown.sort_by_key(|(key, _)| *key);
    or_none(shown.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(","))
}

pub fn or_none(text: String) -> String {
    if text.is_empty() { NONE.to_owned() } else { text }
}

/// A text, or what stands for none.
pub fn or_text(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text.to_owned() }
}

/// The text of a field, or `<none>`.
pub fn text_or_none(value: &Value, key: &str) -> String {
    some_text(value, key).unwrap_or(NONE).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_read_like_l_options() {
        let table = [
            (json!({"matchLabels": {"b": "1", "a": "2"}}), "a=2,b=1"),
            (
                json!({"matchExpressions": [
                    {"key": "x", "operator": "In", "values": ["q", "p"]},
                    {"key": "g", "operator": "DoesNotExist"},
                    {"key": "f", "operator": "Exists"}]}),
                "f,!g,x in (p,q)",
            ),
            (json!({}), "<none>"),
        ];
        for (given, shown) in table {
            assert_eq!(selector(&given), shown);
        }
    }
}
