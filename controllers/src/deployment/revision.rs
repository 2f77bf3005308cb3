//! Which replica set bears the deployment's template, what a new one is called, and its number in the history.

use client::object;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use sha2::{Digest, Sha256};

use super::{Member, Work};
use crate::selector::Labels;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";

/// Annotations of the deployment that say nothing about its template.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MOST,
    "deprecated.deployment.rollback.to",
];

/// The longest history that a set carries along; older numbers fall off.
const HISTORY_BYTES: usize = 2000;

/// Letters and digits that form no words and are hard to mistake for one another.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const HASH_LENGTH: usize = 10;

/// A short, stable name for a template. `collisions` sets apart what happened to get the same name.
fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut digest = Sha256::new();
    // Struct fields and sorted maps serialize in one order only, so equal templates give equal bytes.
    digest.update(crate::plan::value(template).to_string());
    digest.update(collisions.to_be_bytes());
    let digest = digest.finalize();
    digest.iter().take(HASH_LENGTH).map(|b| char::from(ALPHABET[usize::from(*b) % ALPHABET.len()])).collect()
}

fn template_hash(deployment: &Deployment) -> String {
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    deployment.spec.as_ref().map(|s| hash(&s.template, collisions)).unwrap_or_default()
}

/// What the set of the deployment's present template is called, should it have to be created.
pub fn new_name(deployment: &Deployment) -> String {
    format!("{}-{}", object::name(deployment), template_hash(deployment))
}

/// Whether the set was made from the deployment's present template.
pub fn has_template(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let (Some(set), Some(deployment)) = (&set.spec, &deployment.spec) else { return false };
    let Some(template) = &set.template else { return false };
    template.spec == deployment.template.spec && plain_meta(template) == plain_meta(&deployment.template)
}

/// A template's metadata without the label that tells the sets apart.
fn plain_meta(template: &PodTemplateSpec) -> ObjectMeta {
    let mut meta = template.metadata.clone().unwrap_or_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH);
    }
    meta.labels = meta.labels.filter(|l| !l.is_empty());
    meta.annotations = meta.annotations.filter(|a| !a.is_empty());
    meta
}

pub fn number(set: &ReplicaSet) -> i64 {
    object::annotation(set, REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// Notes on a set how large the whole was to be when the set got its size.
pub fn note_sizes(meta: &mut ObjectMeta, desired: i32, most: i32) {
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(DESIRED.to_owned(), desired.to_string());
    annotations.insert(MOST.to_owned(), most.to_string());
}

/// How large the whole was to be when the set got its size.
pub fn noted_desired(set: &ReplicaSet) -> Option<i32> {
    object::annotation(set, DESIRED)?.parse().ok()
}

pub fn noted_most(set: &ReplicaSet) -> Option<i32> {
    object::annotation(set, MOST)?.parse().ok()
}

pub fn new_set(deployment: &Deployment, size: i32, revision: i64) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let hash = template_hash(deployment);
    let mut template = spec.template;
    let template_meta = template.metadata.get_or_insert_default();
    let labels = template_meta.labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.clone());
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash);
    let mut annotations = copied(deployment);
    annotations.insert(REVISION.to_owned(), revision.to_string());
    let metadata = ObjectMeta {
        name: Some(new_name(deployment)),
        namespace: deployment.metadata.namespace.clone(),
        labels: Some(labels.clone()),
        annotations: Some(annotations),
        owner_references: Some(vec![object::controller_reference(deployment)]),
        ..ObjectMeta::default()
    };
    let spec = ReplicaSetSpec {
        replicas: Some(size),
        min_ready_seconds: spec.min_ready_seconds,
        selector,
        template: Some(template),
    };
    ReplicaSet { metadata, spec: Some(spec), status: None }
}

/// The deployment's annotations that its newest set bears too: the cause of the change above all.
fn copied(deployment: &Deployment) -> Labels {
    let annotations = deployment.metadata.annotations.iter().flatten();
    annotations.filter(|(k, _)| !NOT_COPIED.contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
}

impl Work<'_> {
    /// One above every set but the new one.
    pub(super) fn next_revision(&self) -> i64 {
        self.old().map(|(_, m)| number(&m.set)).max().unwrap_or(0) + 1
    }

    /// Brings the new set's number and annotations up to date. A set that is new again, by a rollback, gets a new number
    /// and remembers the ones that it had.
    pub(super) fn number_new(&mut self) {
        let next = self.next_revision();
        let copied = copied(self.deployment);
        let min_ready = self.deployment.spec.as_ref().and_then(|s| s.min_ready_seconds).filter(|s| *s != 0);
        let Some(index) = self.new else { return };
        let Member { set, .. } = &mut self.sets[index];
        let had = number(set);
        let annotations = set.metadata.annotations.get_or_insert_default();
        annotations.extend(copied);
        if had < next {
            if had > 0 {
                let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
                remember(history, had);
            }
            annotations.insert(REVISION.to_owned(), next.to_string());
        }
        let spec = set.spec.get_or_insert_default();
        if spec.min_ready_seconds.filter(|s| *s != 0) != min_ready {
            spec.min_ready_seconds = min_ready;
        }
    }
}

fn remember(history: &mut String, number: i64) {
    if !history.is_empty() {
        history.push(',');
    }
    history.push_str(&number.to_string());
    while history.len() > HISTORY_BYTES {
        let cut = history.find(',').map_or(history.len(), |at| at + 1);
        history.drain(..cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::template;

    #[test]
    fn the_hash_is_stable_and_tells_templates_apart() {
        let one = hash(&template("web", "nginx:1"), 0);
        assert_eq!(one, hash(&template("web", "nginx:1"), 0));
        assert_ne!(one, hash(&template("web", "nginx:2"), 0));
        assert_ne!(one, hash(&template("web", "nginx:1"), 1));
        assert_eq!(one.len(), HASH_LENGTH);
        assert!(one.bytes().all(|b| ALPHABET.contains(&b)));
    }

    #[test]
    fn the_history_is_bounded() {
        let mut history = String::new();
        for number in 1..2000 {
            remember(&mut history, number);
        }
        assert!(history.len() <= HISTORY_BYTES && history.ends_with(",1999"), "{history}");
    }
}
