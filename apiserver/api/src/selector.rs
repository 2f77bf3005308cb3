//! Label selectors and field selectors.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{field, meta, names, registry::Kind};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("unable to parse selector {selector:?}: {why}")]
    Syntax { selector: String, why: String },
    #[error("field label not supported: {path}")]
    UnknownField { path: String },
}

/// What one requirement asks of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    In(Vec<String>),
    /// True also when there is no such label.
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|each| each == value)),
            Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|each| each != value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(bound) => number().is_some_and(|number| number > *bound),
            Operator::LessThan(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

/// All requirements must hold; [`Selector::nothing`] holds for no object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// Matches every object.
    pub const fn everything() -> Self {
        Self { requirements: Vec::new(), nothing: false }
    }

    /// Matches no object: what an absent selector means.
    pub const fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// `a=b,c!=d,e in (x,y),f notin (z),g,!h,i>1`
    pub fn parse(text: &str) -> Result<Self, Error> {
        let parsed = Parser { rest: text }.requirements();
        let requirements = parsed.map_err(|why| Error::Syntax { selector: text.to_owned(), why })?;
        Ok(Self { requirements, nothing: false })
    }

    /// A `metav1.LabelSelector` as JSON. Null matches nothing, `{}` everything.
    pub fn from_json(selector: &Value) -> Result<Self, Error> {
        if !selector.is_object() {
            return Ok(Self::nothing());
        }
        let pairs = field::entries(selector, "matchLabels");
        let mut requirements: Vec<Requirement> = pairs.map(|(key, value)| equals(key, value)).collect();
        for expression in field::items(selector, "matchExpressions") {
            let values = field::items(expression, "values").iter().filter_map(Value::as_str);
            let values = values.map(str::to_owned).collect();
            requirements.push(expression_requirement(
                field::text(expression, "key"),
                field::text(expression, "operator"),
                values,
            )?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// A typed `metav1.LabelSelector`.
    pub fn from_typed(selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector) -> Result<Self, Error> {
        let pairs = selector.match_labels.iter().flatten();
        let mut requirements: Vec<Requirement> = pairs.map(|(key, value)| equals(key, value)).collect();
        for expression in selector.match_expressions.iter().flatten() {
            let values = expression.values.clone().unwrap_or_default();
            requirements.push(expression_requirement(&expression.key, &expression.operator, values)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// The same as [`Selector::from_map`], of pairs that are read from JSON.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let requirements: Vec<_> = pairs.into_iter().map(|(key, value)| equals(key, value)).collect();
        let nothing = requirements.is_empty();
        Self { requirements, nothing }
    }

    /// A plain map, as services and replication controllers have it. An empty map matches nothing there.
    pub fn from_map<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        Self::from_pairs(pairs.into_iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }

    /// Whether the labels of an object fit.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches_json(meta::labels(object))
    }

    pub fn matches_json(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_with(|key| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str))
    }

    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels.and_then(|labels| labels.get(key)).map(String::as_str))
    }

    fn matches_with<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> bool {
        !self.nothing && self.requirements.iter().all(|each| each.matches(value(&each.key)))
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, Requirement { key, operator }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Operator::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan(bound) => write!(f, "{key}>{bound}")?,
                Operator::LessThan(bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

fn equals(key: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), operator: Operator::In(vec![value.to_owned()]) }
}

fn expression_requirement(key: &str, operator: &str, values: Vec<String>) -> Result<Requirement, Error> {
    let operator = match operator {
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => {
            let why = format!("{other:?} is not a valid label selector operator");
            return Err(Error::Syntax { selector: key.to_owned(), why });
        }
    };
    Ok(Requirement { key: key.to_owned(), operator })
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn requirements(mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        self.space();
        if self.rest.is_empty() {
            return Ok(out);
        }
        loop {
            out.push(self.requirement()?);
            self.space();
            if self.rest.is_empty() {
                return Ok(out);
            }
            if !self.eat(",") {
                return Err(format!("found {:?}, expected ',' or the end", self.rest));
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        self.space();
        let absent = self.eat("!");
        let key = self.word();
        if let Some(complaint) = names::qualified_name(key).into_iter().next() {
            return Err(format!("invalid label key {key:?}: {complaint}"));
        }
        let operator = if absent { Operator::DoesNotExist } else { self.operator()? };
        Ok(Requirement { key: key.to_owned(), operator })
    }

    fn operator(&mut self) -> Result<Operator, String> {
        self.space();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Operator::Exists);
        }
        if self.eat("!=") {
            return Ok(Operator::NotIn(vec![self.value()?]));
        }
        if self.eat("==") || self.eat("=") {
            return Ok(Operator::In(vec![self.value()?]));
        }
        if self.eat(">") {
            return Ok(Operator::GreaterThan(self.number()?));
        }
        if self.eat("<") {
            return Ok(Operator::LessThan(self.number()?));
        }
        match self.word() {
            "in" => Ok(Operator::In(self.values()?)),
            "notin" => Ok(Operator::NotIn(self.values()?)),
            _ => Err(format!("found {:?}, expected one of: =, ==, !=, in, notin, <, >", self.rest)),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        self.space();
        if !self.eat("(") {
            return Err(format!("found {:?}, expected '('", self.rest));
        }
        let mut out = Vec::new();
        loop {
            out.push(self.value()?);
            self.space();
            if self.eat(")") {
                return Ok(out);
            }
            if !self.eat(",") {
                return Err(format!("found {:?}, expected ',' or ')'", self.rest));
            }
        }
    }

    fn value(&mut self) -> Result<String, String> {
        self.space();
        let value = self.word();
        match names::label_value(value).into_iter().next() {
            Some(complaint) => Err(format!("invalid label value {value:?}: {complaint}")),
            None => Ok(value.to_owned()),
        }
    }

    fn number(&mut self) -> Result<i64, String> {
        self.space();
        let word = self.word();
        word.parse().map_err(|_| format!("{word:?} must be an integer to compare with '<' or '>'"))
    }

    fn word(&mut self) -> &'a str {
        let end = self.rest.find([' ', '\t', ',', '(', ')', '=', '!', '<', '>']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }
}

/// `metadata.name=x,status.phase!=Failed`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    path: String,
    value: String,
    /// `!=`
    negated: bool,
}

impl FieldSelector {
    /// Parses a selector; a backslash escapes `,`, `=` and itself in a value.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let (path, value, negated) = if let Some((path, value)) = term.split_once("!=") {
                (path, value, true)
            } else if let Some((path, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
                (path, value, false)
            } else {
                let why = format!("{term:?} has no '=', '==' or '!='");
                return Err(Error::Syntax { selector: text.to_owned(), why });
            };
            terms.push(FieldTerm { path: path.to_owned(), value: unescape(value), negated });
        }
        Ok(Self { terms })
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether the kind knows every field that is asked for.
    pub fn check(&self, kind: &Kind) -> Result<(), Error> {
        match self.terms.iter().find(|term| value_of(kind, &Value::Null, &term.path).is_none()) {
            Some(term) => Err(Error::UnknownField { path: term.path.clone() }),
            None => Ok(()),
        }
    }

    /// The value that a field must have, such as that of `metadata.name`.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.terms.iter().find(|term| !term.negated && term.path == path).map(|term| term.value.as_str())
    }

    /// Whether an object of the kind fits. Fields that the kind does not know fit nothing.
    pub fn matches(&self, kind: &Kind, object: &Value) -> bool {
        self.terms
            .iter()
            .all(|term| value_of(kind, object, &term.path).is_some_and(|value| (value == term.value) != term.negated))
    }
}

fn value_of(kind: &Kind, object: &Value, path: &str) -> Option<String> {
    match path {
        "metadata.name" => Some(meta::name(object).to_owned()),
        "metadata.namespace" if kind.namespaced() => Some(meta::namespace(object).to_owned()),
        _ => kind.strategy.field(object, path),
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, c) in text.char_indices() {
        if c == ',' && !escaped {
            out.push(&text[start..index]);
            start = index + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    out.push(&text[start..]);
    out
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut escaped = false;
    for c in text.chars() {
        if c == '\\' && !escaped {
            escaped = true;
            continue;
        }
        out.push(c);
        escaped = false;
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::by_plural;

    #[test]
    fn label_selectors_match() {
        let labels = json!({"a": "b", "n": "5", "x.io/y": ""});
        let table = [
            ("", true),
            ("a=b", true),
            ("a==b", true),
            ("a = b , n", true),
            ("a!=b", false),
            ("z!=b", true),
            ("a in (c, b)", true),
            ("a notin (c,d)", true),
            ("z notin (c)", true),
            ("z in (c)", false),
            ("a,n", true),
            ("!z", true),
            ("!a", false),
            ("n>4", true),
            ("n<5", false),
            ("x.io/y=", true),
            ("x.io/y in (,q)", true),
            ("a=b,z", false),
        ];
        for (text, expected) in table {
            let selector = Selector::parse(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(selector.matches_json(labels.as_object()), expected, "{text}");
            assert_eq!(Selector::parse(&selector.to_string()).as_ref(), Ok(&selector), "{text} prints as it parses");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["a b", "=b", "a=b c", "a in b", "a in (b", "a>x", ",", "a=b,", "A/b/c=d", "a=-", "!", "a(b)"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn selectors_of_other_forms() {
        let labels = json!({"a": "b"});
        let table = [
            (json!({"matchLabels": {"a": "b"}}), true),
            (json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["c"]}]}), true),
            (json!({}), true),
            (Value::Null, false),
        ];
        for (selector, expected) in table {
            let parsed = Selector::from_json(&selector).expect("parses");
            assert_eq!(parsed.matches_json(labels.as_object()), expected, "{selector}");
            if let Ok(typed) = serde_json::from_value(selector) {
                assert_eq!(Selector::from_typed(&typed), Ok(parsed));
            }
        }
        assert!(Selector::from_json(&json!({"matchExpressions": [{"key": "a", "operator": "Is"}]})).is_err());
        let map = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert!(Selector::from_map(&map).matches(Some(&map)));
        assert!(!Selector::from_map(&BTreeMap::new()).matches(Some(&map)));
    }

    #[test]
    fn field_selectors_match() {
        let pods = by_plural("", "v1", "pods").expect("pods are served");
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "a"},
            "status": {"phase": "Running"}});
        let table = [
            ("", true),
            ("metadata.name=p", true),
            ("metadata.name==p,metadata.namespace=n", true),
            ("metadata.namespace!=n", false),
            ("spec.nodeName=a,status.phase!=Succeeded,status.phase!=Failed", true),
            ("spec.nodeName=", false),
            ("spec.hostNetwork=false", true),
        ];
        for (text, expected) in table {
            let selector = FieldSelector::parse(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(selector.check(pods), Ok(()));
            assert_eq!(selector.matches(pods, &pod), expected, "{text}");
        }
        let unknown = FieldSelector::parse("spec.foo=1").expect("parses");
        assert_eq!(unknown.check(pods), Err(Error::UnknownField { path: "spec.foo".to_owned() }));
        assert!(FieldSelector::parse("metadata.name").is_err());
        let escaped = FieldSelector::parse("metadata.name=a\\,b\\=c").expect("parses");
        assert_eq!(escaped.exact("metadata.name"), Some("a,b=c"));
    }
}
