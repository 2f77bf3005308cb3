//! Query strings and percent-encoding, for paths and parameters alike.

/// The parameters of one request, in the order sent.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name, Plus::IsSpace), decode(value, Plus::IsSpace))
        };
        Self(query.unwrap_or("").split('&').filter(|part| !part.is_empty()).map(pair).collect())
    }

    /// The first value under a name; an empty value counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Whether a flag is set: `1`, `true`, or the bare name.
    pub fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(n, v)| n == name && !matches!(v.as_str(), "0" | "false" | "False" | "FALSE" | "f" | "F"))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Plus {
    /// In a query.
    IsSpace,
    /// In a path.
    IsPlus,
}

/// Undoes percent-encoding. What is not valid stays as it is, or becomes the replacement character.
pub fn decode(text: &str, plus: Plus) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let escaped = (bytes[i] == b'%')
            .then(|| text.get(i + 1..i + 3))
            .flatten()
            .filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (escaped, bytes[i]) {
            (Some(byte), _) => {
                out.push(byte);
                i += 2;
            }
            (None, b'+') if plus == Plus::IsSpace => out.push(b' '),
            (None, byte) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// Escapes everything that is special in a path segment or query value.
pub fn encode(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding() {
        for (text, plus, want) in [
            ("a%2Fb+c", Plus::IsSpace, "a/b c"),
            ("a%2Fb+c", Plus::IsPlus, "a/b+c"),
            ("100%", Plus::IsSpace, "100%"),
            ("%zz%e2%82%ac", Plus::IsSpace, "%zz€"),
            ("%+1", Plus::IsPlus, "%+1"),
            ("%€", Plus::IsPlus, "%€"),
        ] {
            assert_eq!(decode(text, plus), want, "{text}");
        }
        assert_eq!(decode(&encode("a b/ü+%"), Plus::IsSpace), "a b/ü+%");
    }

    #[test]
    fn parameters() {
        let q = Query::parse(Some("command=sh&command=-c&watch=1&limit=&pretty=false&x"));
        assert_eq!(q.all("command").collect::<Vec<_>>(), ["sh", "-c"]);
        assert_eq!((q.get("limit"), q.flag("watch"), q.flag("pretty"), q.flag("x")), (None, true, false, true));
        assert_eq!(Query::parse(None), Query::default());
    }
}
