//! The service `Cluster`, and those calls of `Maintenance` that concern more than one member.

use std::pin::Pin;

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use super::{
    Api,
    grpc::{Call, frame},
    messages::{
        Empty, HeaderOnly,
        cluster::{
            Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberRequest,
            MemberUpdateRequest, MembersResponse, MoveLeaderRequest, SnapshotResponse,
        },
    },
    status::{Code, Status},
};
use crate::MemberInfo;

/// A piece of a snapshot.
const PIECE: usize = 64 << 10;

/// What the group is asked to do beyond its keys. The store cannot do it alone: a member is a server with keys of its own,
/// and only the one that leads changes who belongs to the group.
pub trait Cluster: Send + Sync {
    fn change(&self, change: ClusterChange) -> Doing<'_, u64>;
    /// Everything that [`crate::restore`] and those who start servers need, as one file.
    fn archive(&self) -> Doing<'_, Bytes>;
}

pub type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, ClusterError>> + Send + 'a>>;

/// Answered by the number of the member that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterChange {
    /// Keeps a place for a server that will be at an address.
    Add {
        peer_urls: Vec<String>,
    },
    Remove(u64),
    Update {
        id: u64,
        peer_urls: Vec<String>,
    },
    Promote(u64),
}

/// Why the group is not changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterError {
    NotFound,
    /// There is a member at that address already.
    Exists,
    NotLearner,
    NotInSync,
    Unavailable,
    Other(String),
}

impl From<ClusterError> for Status {
    fn from(error: ClusterError) -> Status {
        match error {
            ClusterError::NotFound => Status { code: Code::NotFound, message: "etcdserver: member not found".into() },
            ClusterError::Exists => Status::precondition("etcdserver: Peer URLs already exists"),
            ClusterError::NotLearner => Status::precondition("etcdserver: can only promote a learner member"),
            ClusterError::NotInSync => {
                Status::precondition("etcdserver: can only promote a learner member which is in sync with leader")
            }
            ClusterError::Unavailable => Status::NO_LEADER,
            ClusterError::Other(what) => Status { code: Code::Unknown, message: what.into() },
        }
    }
}

pub async fn list(api: &Api, request: MemberListRequest) -> Result<MemberListResponse, Status> {
    if request.linearizable {
        api.store.read_barrier().await?;
    }
    Ok(MemberListResponse { header: api.header_now(), members: members(api) })
}

fn members(api: &Api) -> Vec<Member> {
    let (group, mut known) = (api.store.group().borrow().clone(), api.store.snapshot().members());
    let member = |id: u64| {
        let MemberInfo { name, peer_urls, client_urls, .. } = known.remove(&id).unwrap_or_default();
        Member { id, name, peer_urls, client_urls, is_learner: group.learners.contains(&id) }
    };
    let mut ids: Vec<u64> = group.ids().collect();
    ids.sort_unstable();
    ids.into_iter().map(member).collect()
}

pub async fn add(api: &Api, request: MemberAddRequest) -> Result<MemberAddResponse, Status> {
    if request.peer_urls.is_empty() {
        return Err(Status {
            code: Code::InvalidArgument,
            message: "etcdserver: given member URLs are invalid".into(),
        });
    }
    let id = api.cluster.change(ClusterChange::Add { peer_urls: request.peer_urls.clone() }).await?;
    // Here the change may be known a little later than to the member that leads.
    let member = Member { id, peer_urls: request.peer_urls, is_learner: true, ..Member::default() };
    let mut members = members(api);
    if members.iter().all(|known| known.id != id) {
        members.push(member.clone());
    }
    Ok(MemberAddResponse { header: api.header_now(), member: Some(member), members })
}

pub async fn remove(api: &Api, request: MemberRequest) -> Result<MembersResponse, Status> {
    let id = api.cluster.change(ClusterChange::Remove(request.id)).await?;
    let members = members(api).into_iter().filter(|member| member.id != id).collect();
    Ok(MembersResponse { header: api.header_now(), members })
}

pub async fn update(api: &Api, request: MemberUpdateRequest) -> Result<MembersResponse, Status> {
    api.cluster.change(ClusterChange::Update { id: request.id, peer_urls: request.peer_urls }).await?;
    Ok(MembersResponse { header: api.header_now(), members: members(api) })
}

pub async fn promote(api: &Api, request: MemberRequest) -> Result<MembersResponse, Status> {
    let id = api.cluster.change(ClusterChange::Promote(request.id)).await?;
    let mut members = members(api);
    members.iter_mut().filter(|member| member.id == id).for_each(|member| member.is_learner = false);
    Ok(MembersResponse { header: api.header_now(), members })
}

pub async fn move_leader(api: &Api, request: MoveLeaderRequest) -> Result<HeaderOnly, Status> {
    let group = api.store.group().borrow().clone();
    if !group.leads() {
        return Err(Status::precondition("etcdserver: not leader"));
    }
    if !group.voters.contains(&request.target_id) {
        return Err(Status::precondition("etcdserver: bad leader transferee"));
    }
    if api.store.hand_over_to(request.target_id).await {
        return Ok(HeaderOnly { header: api.header_now() });
    }
    Err(Status {
        code: Code::Unavailable,
        message: "etcdserver: request timed out, leader transfer took too long".into(),
    })
}

/// Sends a snapshot, and behind it the digest by which clients know that they have all of it.
pub async fn snapshot(api: &Api, mut call: Call) {
    match call.incoming.next::<Empty>().await {
        Ok(Some(_)) => {}
        Ok(None) => return call.refuse(&Status::CUT_SHORT),
        Err(status) => return call.refuse(&status),
    }
    let archive = match api.cluster.archive().await {
        Ok(archive) => archive,
        Err(error) => return call.refuse(&error.into()),
    };
    let Some((_, mut outgoing)) = call.answer() else { return };
    let mut digest = Context::new(&SHA256);
    digest.update(&archive);
    let digest = Bytes::copy_from_slice(digest.finish().as_ref());
    let mut rest = archive.len() + digest.len();
    let mut archive = archive;
    while rest > 0 {
        let blob = if archive.is_empty() { digest.clone() } else { archive.split_to(PIECE.min(archive.len())) };
        rest -= blob.len();
        let version = super::storage_version();
        let piece = SnapshotResponse { header: api.header_now(), remaining_bytes: rest as u64, blob, version };
        if outgoing.send(frame(&piece)).await.is_err() {
            return;
        }
    }
    outgoing.end(Ok(()));
}

/// A group that only ever has the one member.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Cluster for Alone {
    fn change(&self, change: ClusterChange) -> Doing<'_, u64> {
        let error = match change {
            ClusterChange::Add { .. } => ClusterError::Other("this group has one member for good".into()),
            ClusterChange::Remove(_) | ClusterChange::Update { .. } | ClusterChange::Promote(_) => {
                ClusterError::NotFound
            }
        };
        Box::pin(async { Err(error) })
    }

    fn archive(&self) -> Doing<'_, Bytes> {
        Box::pin(async {
            Err(ClusterError::Other("there is nothing to make a snapshot of but the store itself".into()))
        })
    }
}
