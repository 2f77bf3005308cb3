//! Which objects a controller's object owns: by reference, with the selector deciding who is taken in and let go.

use client::{Object, object};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;

use crate::{
    plan::{Face, Target, Write},
    selector::Selector,
};

/// What an owner makes of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is ours.
    Owned,
    /// Nobody manages it and our selector matches: take it in.
    Adopt,
    /// Ours by reference, but our selector no longer matches: let it go.
    Release,
    /// None of our business.
    Foreign,
}

pub fn claim(owner: &ObjectMeta, selector: &Selector, candidate: &impl Object) -> Claim {
    let ours = owner.uid.as_deref().unwrap_or_default();
    let leaving = owner.deletion_timestamp.is_some();
    let matches = selector.matches(candidate.meta().labels.as_ref());
    match object::controller(candidate) {
        Some(reference) if reference.uid != ours => Claim::Foreign,
        Some(_) if matches => Claim::Owned,
        // An owner that is on its way out changes nothing: the garbage collector decides about its dependents.
        Some(_) if leaving => Claim::Foreign,
        Some(_) => Claim::Release,
        None if leaving || !matches || object::is_deleting(candidate) => Claim::Foreign,
        None => Claim::Adopt,
    }
}

/// Makes `owner` the managing owner. The cache may be behind, so the owner's life is checked at the server first: an
/// adoption by an owner that is gone would be a death sentence.
pub fn adopt<O: Object, K: Object>(owner: &O, candidate: &K) -> Write {
    let mut references = candidate.meta().owner_references.clone().unwrap_or_default();
    references.push(object::controller_reference(owner));
    set_references(candidate, &references).guard(Target::of(owner), object::uid(owner))
}

/// Removes the reference to `owner`.
pub fn release<O: Object, K: Object>(owner: &O, candidate: &K) -> Write {
    let references = candidate.meta().owner_references.clone().unwrap_or_default();
    let kept: Vec<OwnerReference> = references.into_iter().filter(|r| r.uid != object::uid(owner)).collect();
    set_references(candidate, &kept)
}

fn set_references<K: Object>(candidate: &K, references: &[OwnerReference]) -> Write {
    let meta = candidate.meta();
    let patch = json!({ "metadata": {
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "ownerReferences": references,
    }});
    Write::merge(Target::of(candidate), Face::Whole, patch)
}

#[cfg(test)]
mod tests {
    use client::pod::Pod;

    use super::*;
    use crate::testing::{labels, pod};

    #[test]
    fn claims() {
        let selector = Selector::map(&labels(&[("app", "web")]));
        let owner = |leaving: bool| ObjectMeta {
            uid: Some("mine".into()),
            deletion_timestamp: leaving.then(|| crate::testing::time(1)),
            ..ObjectMeta::default()
        };
        let candidate = |app: &str, by: Option<&str>, leaving: bool| -> Pod {
            let mut p = pod("p");
            p.metadata.labels = Some(labels(&[("app", app)]));
            p.metadata.owner_references = by.map(|uid| {
                vec![OwnerReference { uid: uid.into(), controller: Some(true), ..OwnerReference::default() }]
            });
            p.metadata.deletion_timestamp = leaving.then(|| crate::testing::time(1));
            p
        };
        let cases = [
            (owner(false), candidate("web", Some("mine"), false), Claim::Owned),
            (owner(false), candidate("web", Some("mine"), true), Claim::Owned),
            (owner(true), candidate("web", Some("mine"), false), Claim::Owned),
            (owner(false), candidate("other", Some("mine"), false), Claim::Release),
            (owner(true), candidate("other", Some("mine"), false), Claim::Foreign),
            (owner(false), candidate("web", Some("another"), false), Claim::Foreign),
            (owner(false), candidate("web", None, false), Claim::Adopt),
            (owner(false), candidate("web", None, true), Claim::Foreign),
            (owner(true), candidate("web", None, false), Claim::Foreign),
            (owner(false), candidate("other", None, false), Claim::Foreign),
        ];
        for (i, (owner, candidate, wanted)) in cases.into_iter().enumerate() {
            assert_eq!(claim(&owner, &selector, &candidate), wanted, "case {i}");
        }
    }
}
