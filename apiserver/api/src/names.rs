//! The syntaxes of names, labels and annotations. Every function answers its complaints; none means fine.

pub const LABEL_LIMIT: usize = 63;
pub const SUBDOMAIN_LIMIT: usize = 253;
/// All annotations of an object together.
pub const ANNOTATIONS_LIMIT: usize = 256 * 1024;

/// A rule for text.
pub type Rule = fn(&str) -> Vec<String>;

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = bytes.iter().all(|&b| lower_alphanumeric(b) || b == b'-');
    inner && ends(bytes, lower_alphanumeric)
}

/// Whether the first and the last byte are there and fine.
fn ends(bytes: &[u8], fine: fn(u8) -> bool) -> bool {
    matches!((bytes.first(), bytes.last()), (Some(&first), Some(&last)) if fine(first) && fine(last))
}

/// `my-name`: RFC 1123, up to 63 bytes.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > LABEL_LIMIT {
        out.push(too_long(LABEL_LIMIT));
    }
    if !is_label(text) {
        out.push(
            "must be a DNS-1123 label: lower-case letters, digits and '-', a letter or digit at both ends (such as 'my-name')".to_owned(),
        );
    }
    out
}

/// `example.com`: RFC 1123 labels joined by dots, up to 253 bytes.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > SUBDOMAIN_LIMIT {
        out.push(too_long(SUBDOMAIN_LIMIT));
    }
    if !text.split('.').all(is_label) {
        out.push(
            "must be a DNS-1123 subdomain: labels of lower-case letters, digits and '-', a letter or digit at both ends of \
             each, joined by '.' (such as 'example.com')".to_owned(),
        );
    }
    out
}

/// `my-name`, starting with a letter: RFC 1035, up to 63 bytes.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > LABEL_LIMIT {
        out.push(too_long(LABEL_LIMIT));
    }
    if !is_label(text) || !text.starts_with(|first: char| first.is_ascii_lowercase()) {
        out.push(
            "must be a DNS-1035 label: lower-case letters, digits and '-', a letter first, a letter or digit last (such as \
             'my-name')".to_owned(),
        );
    }
    out
}

/// A name that only has to fit into a path.
pub fn path_segment(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    let banned = ["/", "%"].iter().filter(|banned| text.contains(**banned));
    banned.map(|banned| format!("may not contain '{banned}'")).collect()
}

/// `MyName`, `my.name`, `123-abc` with an optional `example.com/` before it: keys of labels and annotations.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let name = match text.split_once('/') {
        Some((_, rest)) if rest.contains('/') => {
            return vec![
                "must be a name with at most one prefix before a '/' (such as 'example.com/my-name')".to_owned(),
            ];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".to_owned());
            } else {
                out.extend(dns1123_subdomain(prefix).into_iter().map(|complaint| format!("prefix part {complaint}")));
            }
            name
        }
        None => text,
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_LIMIT {
        out.push(format!("name part {}", too_long(LABEL_LIMIT)));
    }
    if !is_name_part(name) {
        out.push(
            "name part must be letters, digits, '-', '_' and '.' with a letter or digit at both ends (such as 'my.name')"
                .to_owned(),
        );
    }
    out
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = bytes.iter().all(|&b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    inner && ends(bytes, |b| b.is_ascii_alphanumeric())
}

/// Up to 63 bytes; may be empty.
pub fn label_value(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > LABEL_LIMIT {
        out.push(too_long(LABEL_LIMIT));
    }
    if !text.is_empty() && !is_name_part(text) {
        out.push(
            "must be empty, or letters, digits, '-', '_' and '.' with a letter or digit at both ends (such as 'my.value')".to_owned(),
        );
    }
    out
}

/// A port's name: at most 15 lower-case characters, one of them a letter.
pub fn port_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 15 {
        out.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|b| lower_alphanumeric(b) || b == b'-') {
        out.push("must be lower-case letters, digits and '-'".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        out.push("must not contain '--'".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with '-'".to_owned());
    }
    out
}

pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec!["must be between 1 and 65535".to_owned()] }
}

/// A key of a config map or a secret: a file name.
pub fn config_key(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > SUBDOMAIN_LIMIT {
        out.push(too_long(SUBDOMAIN_LIMIT));
    }
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(fine) {
        out.push("must be a file name of letters, digits, '-', '_' and '.' (such as 'app.conf')".to_owned());
    }
    match text {
        "." => out.push("must not be '.'".to_owned()),
        ".." => out.push("must not be '..'".to_owned()),
        _ if text.starts_with("..") => out.push("must not start with '..'".to_owned()),
        _ => {}
    }
    out
}

/// The name of an environment variable: printable ASCII but `=`.
pub fn env_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec!["must be printable ASCII without '=' (such as 'MY_NAME')".to_owned()]
}

/// An IPv4 or IPv6 address.
pub fn ip(text: &str) -> Vec<String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be an IP address (such as 10.9.8.7 or 2001:db8::1)".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_accept_and_refuse() {
        let long = "a".repeat(64);
        let table: &[(Rule, &[&str], &[&str])] = &[
            (dns1123_label, &["a", "a-1", "1a"], &["", "A", "-a", "a-", "a.b", &long]),
            (dns1123_subdomain, &["a.b-c.1", &long], &["", "a..b", ".a", "a.-b", "A"]),
            (dns1035_label, &["a", "a1-b"], &["1a", "", "a."]),
            (path_segment, &["system:node:a", "A b"], &[".", "..", "a/b", "50%"]),
            (qualified_name, &["a", "A_b.c", "x.io/a"], &["", "/a", "x.io/", "a/b/c", "A/b", "-a", &long]),
            (label_value, &["", "A.b_c"], &["-a", "a b", &long]),
            (port_name, &["http", "h2-c"], &["", "80", "a--b", "-a", "Http", "abcdefghijklmnop"]),
            (config_key, &["a", ".a", "A_B-c.d"], &["", ".", "..", "..a", "a/b"]),
            (env_name, &["A", "a.b", "1 x"], &["", "a=b", "é"]),
            (ip, &["10.0.0.1", "::1"], &["10.0.0.256", "a", "010.0.0.1"]),
        ];
        for (index, (rule, good, bad)) in table.iter().enumerate() {
            for text in *good {
                assert_eq!(rule(text), Vec::<String>::new(), "rule {index}: {text}");
            }
            for text in *bad {
                assert_ne!(rule(text), Vec::<String>::new(), "rule {index}: {text}");
            }
        }
    }
}
