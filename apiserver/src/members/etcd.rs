//! Members as clients of the etcd API see them: the same servers, under etcd's names.

use std::{collections::BTreeMap, sync::Arc};

use api::status::{Reason, Status};
use bytes::Bytes;
use http::Method;
use store::{
    MemberInfo,
    etcd::{Cluster, ClusterChange, ClusterError, Doing},
};

use super::{Admitted, Application, admit_at, is_at, pass_on, promote_one, revise, take_out};
use crate::{App, objects::store_failure, paths};

/// The cluster, for [`store::etcd::serve`].
pub struct EtcdCluster(pub Arc<App>);

impl Cluster for EtcdCluster {
    fn change(&self, change: ClusterChange) -> Doing<'_, u64> {
        Box::pin(async move {
            match change {
                ClusterChange::Add { peer_urls } => add(&self.0, peer_urls).await,
                ClusterChange::Remove(id) => remove(&self.0, id).await,
                ClusterChange::Update { id, peer_urls } => update(&self.0, id, peer_urls).await,
                ClusterChange::Promote(id) => promote(&self.0, id).await,
            }
        })
    }

    fn archive(&self) -> Doing<'_, Bytes> {
        Box::pin(async {
            let taken = self.0.snapshots().take().await.map_err(ClusterError::Other)?;
            Ok(taken.archive.into())
        })
    }
}

/// What a refusal may be for: all that is known of members, with what any server had acknowledged before the request came.
async fn newest(app: &App) -> Result<BTreeMap<u64, MemberInfo>, ClusterError> {
    app.store.read_barrier().await.map_err(|error| failure(store_failure(error)))?;
    Ok(app.store.raw().snapshot().members())
}

/// What is known of a member that has not been removed.
fn known(mut members: BTreeMap<u64, MemberInfo>, id: u64) -> Result<MemberInfo, ClusterError> {
    members.remove(&id).filter(|info| !info.removed).ok_or(ClusterError::NotFound)
}

async fn add(app: &App, peer_urls: Vec<String>) -> Result<u64, ClusterError> {
    let [url] = &peer_urls[..] else {
        return Err(ClusterError::Other("a server has one address".into()));
    };
    if newest(app).await?.values().any(|info| is_at(info, url)) {
        return Err(ClusterError::Exists);
    }
    // The place is kept for whoever joins from there: it takes it over under a number of its own.
    let application = Application { name: String::new(), url: url.clone(), ..Application::of_cluster(app) };
    let body = serde_json::to_vec(&application).unwrap_or_default();
    match pass_on(app, (Method::POST, paths::SERVERS), body.into()).await.map_err(failure)? {
        Some(answer) => {
            let Admitted { member } =
                serde_json::from_slice(&answer).map_err(|e| ClusterError::Other(e.to_string()))?;
            u64::from_str_radix(&member, 16).map_err(|_| ClusterError::Other(format!("{member:?} is no member")))
        }
        None => admit_at(app, application).await.map_err(failure),
    }
}

async fn remove(app: &App, id: u64) -> Result<u64, ClusterError> {
    known(newest(app).await?, id)?;
    let path = paths::server(&format!("{id:016x}"));
    if pass_on(app, (Method::DELETE, &path), Bytes::new()).await.map_err(failure)?.is_none() {
        let _one = app.changing.lock().await;
        take_out(app, id).await.map_err(failure)?;
    }
    Ok(id)
}

/// Any server may write it down: it is a key like any other.
async fn update(app: &App, id: u64, peer_urls: Vec<String>) -> Result<u64, ClusterError> {
    newest(app).await?;
    let written = revise(app, id, |members| moved(members, id, &peer_urls)).await.map_err(failure)?;
    written.map(|()| id)
}

/// What is known of a member once it is elsewhere.
pub fn moved(members: BTreeMap<u64, MemberInfo>, id: u64, peer_urls: &[String]) -> Result<MemberInfo, ClusterError> {
    let taken = |url: &String| members.iter().any(|(&other, info)| other != id && is_at(info, url));
    let taken = peer_urls.iter().any(taken);
    let info = known(members, id)?;
    match peer_urls {
        [_] if taken => Err(ClusterError::Exists),
        [url] => Ok(MemberInfo { peer_urls: vec![url.clone()], ..info }),
        _ => Err(ClusterError::Other("a server has one address".into())),
    }
}

async fn promote(app: &App, id: u64) -> Result<u64, ClusterError> {
    known(newest(app).await?, id)?;
    if !app.store.raw().group().borrow().learners.contains(&id) {
        return Err(ClusterError::NotLearner);
    }
    let path = paths::server(&format!("{id:016x}"));
    let promoted = match pass_on(app, (Method::POST, &path), Bytes::new()).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => promote_one(app, id).await,
        Err(status) => Err(status),
    };
    match promoted {
        Ok(()) => Ok(id),
        Err(status) if status.reason == Reason::BadRequest => Err(ClusterError::NotInSync),
        Err(status) => Err(failure(status)),
    }
}

fn failure(status: Status) -> ClusterError {
    let passing = matches!(status.reason, Reason::ServiceUnavailable | Reason::Timeout);
    if passing { ClusterError::Unavailable } else { ClusterError::Other(status.message) }
}
