//! Kinds known only at run time, seen by their metadata: what namespaces hold, and who owns whom.

use api::registry::Kind;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, OwnerReference, Time};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::{
    client::Client,
    error::{Error, Result},
    object::parse_revision,
    request::{List, Place, with_query},
    watch::{self, Pause, Watch},
};

/// What an object says about itself, whatever its kind.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub creation_timestamp: Option<Time>,
    pub deletion_timestamp: Option<Time>,
    pub finalizers: Vec<String>,
    pub owner_references: Vec<OwnerReference>,
}

/// What a follower is told. Each tells the state: a follower that takes them in order has seen everything.
#[derive(Debug)]
pub enum Sighting {
    /// These and no others exist.
    All(Vec<Metadata>),
    Put(Metadata),
    Gone(Metadata),
}

#[derive(Deserialize)]
struct Only {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct OnlyList {
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Only>,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Where a kind's objects, or one of them, are found.
fn place<'a>(kind: &'a Kind, namespace: &'a str, name: &'a str) -> Place<'a> {
    let namespace = if kind.namespaced() { namespace } else { "" };
    Place { group: kind.group, version: kind.version, namespace, plural: kind.plural, name }
}

impl Client {
    pub async fn metadata(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Metadata> {
        let only: Only = self.call(http::Method::GET, place(kind, namespace, name).to_string(), None).await?;
        Ok(only.metadata)
    }

    pub async fn list_metadata(&self, kind: &Kind, namespace: &str) -> Result<List<Metadata>> {
        let list: OnlyList = self.call(http::Method::GET, place(kind, namespace, "").to_string(), None).await?;
        let revision = parse_revision(list.metadata.resource_version.as_deref());
        Ok(List { items: list.items.into_iter().map(|o| o.metadata).collect(), revision })
    }

    /// Tells of every object of a kind, all of them first and then each change, until nobody listens any more. A slow
    /// listener slows the watch down; what the server then gives up on is listed again.
    pub async fn follow_metadata(&self, kind: &'static Kind, to: mpsc::Sender<(&'static Kind, Sighting)>) {
        let (mut pause, mut revision) = (Pause::new(), None);
        while !to.is_closed() {
            let before = revision;
            let attempt = self.advance(kind, &mut revision, &to).await;
            if attempt.is_ok() || before.is_some() && revision > before {
                pause.reset();
            }
            if let Err(error) = attempt {
                tracing::debug!(kind = kind.kind, %error, "the watch broke off");
                if error.is_expired() || error.is_ahead() {
                    revision = None;
                }
            }
            tokio::time::sleep(pause.next()).await;
        }
    }

    /// Lists if that is still to be done, then follows one watch to its end.
    async fn advance(
        &self,
        kind: &'static Kind,
        revision: &mut Option<u64>,
        to: &mpsc::Sender<(&'static Kind, Sighting)>,
    ) -> Result<()> {
        let from = match *revision {
            Some(revision) => revision,
            None => {
                let list = self.list_metadata(kind, "").await?;
                let _ = to.send((kind, Sighting::All(list.items))).await;
                *revision.insert(list.revision)
            }
        };
        let query = watch::query(from);
        let mut stream = Watch::open(self, with_query(place(kind, "", "").to_string(), &query)).await?;
        while let Some(line) = stream.next().await? {
            let (seen, sighting) = decode(kind, &line)?;
            *revision = Some(seen.max(from));
            if let Some(sighting) = sighting
                && to.send((kind, sighting)).await.is_err()
            {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn decode(kind: &Kind, line: &[u8]) -> Result<(u64, Option<Sighting>)> {
    let bad = |source| Error::Decode { operation: format!("watch {}", kind.plural), source };
    let line: Line<'_> = serde_json::from_slice(line).map_err(bad)?;
    if line.kind == "ERROR" {
        return Err(Error::Api(Box::new(serde_json::from_str(line.object.get()).map_err(bad)?)));
    }
    let Only { metadata } = serde_json::from_str(line.object.get()).map_err(bad)?;
    let revision = parse_revision(Some(&metadata.resource_version));
    let sighting = match line.kind {
        "ADDED" | "MODIFIED" => Some(Sighting::Put(metadata)),
        "DELETED" => Some(Sighting::Gone(metadata)),
        "BOOKMARK" => None,
        other => return Err(bad(serde::de::Error::custom(format!("an event of unknown type {other:?}")))),
    };
    Ok((revision, sighting))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_metadata_is_read() {
        let kind = api::registry::by_plural("", "v1", "pods").expect("pods");
        let line =
            br#"{"type":"MODIFIED","object":{"kind":"Pod","spec":{"x":[1]},"metadata":{"name":"a","namespace":"b",
            "uid":"u","resourceVersion":"7","managedFields":[{}],"finalizers":["f"]}}}"#;
        let (revision, sighting) = decode(kind, line).expect("an event");
        let Some(Sighting::Put(metadata)) = sighting else { panic!("a put: {sighting:?}") };
        assert_eq!((revision, metadata.name.as_str(), metadata.uid.as_str()), (7, "a", "u"));
        assert_eq!(metadata.finalizers, ["f"]);
        let (revision, sighting) =
            decode(kind, br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#).expect("an event");
        assert!(revision == 9 && sighting.is_none());
    }
}
