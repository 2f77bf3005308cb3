//! Which objects a list or a watch shows.

use std::{borrow::Cow, sync::Arc};

use api::{
    registry::Kind,
    selector::{FieldSelector, Selector},
    status::Status,
};
use bytes::Bytes;
use store::KeyValue;

use crate::{keys, query::Query, route::Target, stored};
use stored::Parsed;

pub struct Filter {
    kind: &'static Kind,
    labels: Selector,
    /// None when the range of keys already says it all.
    fields: Option<FieldSelector>,
    pub range: keys::Range,
    /// The selectors as they were written: filters of one range with the same text show the same.
    pub text: Arc<str>,
}

impl Filter {
    pub fn parse(target: &Target, query: &Query) -> Result<Self, Status> {
        let refuse = |error: api::selector::Error| Status::bad_request(error.to_string());
        let kind = target.kind.stored();
        let labels = Selector::parse(query.get("labelSelector").unwrap_or_default()).map_err(refuse)?;
        let text = query.get("fieldSelector").unwrap_or_default();
        let fields = FieldSelector::parse(text).map_err(refuse)?;
        fields.check(kind).map_err(refuse)?;

        let namespace = match target.namespace.as_str() {
            "" if kind.namespaced() => fields.exact("metadata.namespace").unwrap_or_default(),
            namespace => namespace,
        };
        let selected = fields.exact("metadata.name");
        let name = if target.name.is_empty() { selected.unwrap_or_default() } else { &target.name };
        // A single name is a single key: most watches of clients that wait for one object are of this kind.
        let one_key = !name.is_empty() && !name.contains('/') && (!namespace.is_empty() || !kind.namespaced());
        let range = if one_key {
            keys::Range::key(keys::object(kind, namespace, name))
        } else {
            keys::collection(kind, namespace)
        };
        let said = fields.is_everything() || one_key && selected == Some(name) && !text.contains(',');
        let label_text = query.get("labelSelector").unwrap_or_default();
        // No selector has a line break in it.
        let written = format!("{label_text}\n{}", if said { "" } else { text });
        Ok(Self { kind, labels, fields: (!said).then_some(fields), range, text: written.into() })
    }

    /// Whether everything in the range is shown.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_none()
    }

    /// Those of some values that are shown. The first one that cannot be read is an error in its place.
    pub fn shown<'a>(
        &self,
        parsed: &Parsed,
        values: impl Iterator<Item = Result<Cow<'a, Arc<KeyValue>>, Status>>,
    ) -> impl Iterator<Item = Result<Arc<KeyValue>, Status>> {
        let everything = self.is_everything();
        values.filter_map(move |kv| match kv {
            Ok(kv) if everything || self.matches(parsed, &kv.value, kv.mod_revision) => Some(Ok(kv.into_owned())),
            Ok(_) => None,
            Err(status) => Some(Err(status)),
        })
    }

    pub fn matches(&self, parsed: &Parsed, value: &Bytes, revision: u64) -> bool {
        if !self.labels.is_everything() && !self.labels.matches_json(Some(&stored::labels(value))) {
            return false;
        }
        self.fields.as_ref().is_none_or(|fields| fields.matches(self.kind, &parsed.get(value, revision)))
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::route::{Route, parse};

    fn filter(uri: &str) -> Result<Filter, Status> {
        let uri: http::Uri = uri.parse().unwrap();
        let query = Query::parse(uri.query());
        match parse(&Method::GET, uri.path(), &query).unwrap() {
            Route::Resource(target) => Filter::parse(&target, &query),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ranges_are_as_narrow_as_the_selector_says() {
        for (uri, start, everything) in [
            ("/api/v1/pods", "/registry/pods/", true),
            ("/api/v1/namespaces/n/pods", "/registry/pods/n/", true),
            ("/api/v1/namespaces/n/pods?fieldSelector=metadata.name%3Dp", "/registry/pods/n/p", true),
            ("/api/v1/pods?fieldSelector=metadata.name%3Dp,metadata.namespace%3Dn", "/registry/pods/n/p", false),
            ("/api/v1/pods?fieldSelector=metadata.name%3Dp", "/registry/pods/", false),
            ("/api/v1/watch/namespaces/n/pods/p", "/registry/pods/n/p", true),
            ("/api/v1/nodes?labelSelector=a%3Db", "/registry/nodes/", false),
            ("/api/v1/nodes?fieldSelector=metadata.name%3Da/b", "/registry/nodes/", false),
        ] {
            let filter = filter(uri).unwrap();
            assert_eq!((&filter.range.start[..], filter.is_everything()), (start.as_bytes(), everything), "{uri}");
        }
        assert_eq!(filter("/api/v1/pods?fieldSelector=spec.nonsense%3Da").err().unwrap().code, 400);
        assert_eq!(filter("/api/v1/pods?labelSelector=%3D%3D").err().unwrap().code, 400);
    }

    #[test]
    fn values_are_matched_by_labels_and_fields() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}}, "spec": {"nodeName": "x"}});
        let (value, parsed) = (stored::encode(&pod), Parsed::default());
        for (selectors, want) in [
            ("labelSelector=a%3Db", true),
            ("labelSelector=a!%3Db", false),
            ("fieldSelector=spec.nodeName%3Dx", true),
            ("fieldSelector=spec.nodeName%3Dy", false),
            ("fieldSelector=spec.nodeName%3Dx&labelSelector=c", false),
        ] {
            let filter = filter(&format!("/api/v1/pods?{selectors}")).unwrap();
            assert_eq!(filter.matches(&parsed, &value, 5), want, "{selectors}");
        }
    }
}
