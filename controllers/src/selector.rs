//! Label selectors, as objects carry them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub type Labels = BTreeMap<String, String>;

/// A conjunction of requirements. One without any matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    equal: Labels,
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    /// An operator that validation would not have let through matches nothing.
    Unknown,
}

impl Selector {
    pub fn map(labels: &Labels) -> Selector {
        Selector { equal: labels.clone(), requirements: Vec::new() }
    }

    pub fn of(selector: &LabelSelector) -> Selector {
        let expressions = selector.match_expressions.as_deref().unwrap_or_default();
        let requirements = expressions.iter().map(|e| {
            let values = e.values.clone().unwrap_or_default();
            let test = match e.operator.as_str() {
                "In" => Test::In(values),
                "NotIn" => Test::NotIn(values),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::DoesNotExist,
                _ => Test::Unknown,
            };
            Requirement { key: e.key.clone(), test }
        });
        Selector { equal: selector.match_labels.clone().unwrap_or_default(), requirements: requirements.collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.equal.is_empty() && self.requirements.is_empty()
    }

    /// A label that every match carries, if the selector has such: what an index is asked for.
    pub fn pivot(&self) -> Option<(&str, &str)> {
        self.equal.iter().next().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    pub fn matches(&self, labels: Option<&Labels>) -> bool {
        let value = |key: &str| labels.and_then(|l| l.get(key));
        self.equal.iter().all(|(k, v)| value(k) == Some(v))
            && self.requirements.iter().all(|r| match (&r.test, value(&r.key)) {
                (Test::In(values), Some(v)) => values.contains(v),
                (Test::NotIn(values), Some(v)) => !values.contains(v),
                (Test::Exists, found) => found.is_some(),
                (Test::DoesNotExist, found) => found.is_none(),
                (Test::NotIn(_), None) => true,
                (Test::In(_), None) | (Test::Unknown, _) => false,
            })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;
    use crate::testing::labels;

    #[test]
    fn expressions() {
        let have = labels(&[("app", "web"), ("tier", "front")]);
        let cases = [
            ("tier", "In", vec!["front", "back"], true),
            ("tier", "In", vec!["back"], false),
            ("tier", "NotIn", vec!["back"], true),
            ("none", "NotIn", vec!["back"], true),
            ("tier", "Exists", vec![], true),
            ("none", "Exists", vec![], false),
            ("tier", "DoesNotExist", vec![], false),
            ("none", "DoesNotExist", vec![], true),
            ("tier", "Near", vec!["front"], false),
        ];
        for (key, operator, values, wanted) in cases {
            let requirement = LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
            };
            let selector = Selector::of(&LabelSelector {
                match_labels: Some(labels(&[("app", "web")])),
                match_expressions: Some(vec![requirement]),
            });
            assert_eq!(selector.matches(Some(&have)), wanted, "{key} {operator} {values:?}");
            assert!(!selector.matches(None));
        }
    }
}
