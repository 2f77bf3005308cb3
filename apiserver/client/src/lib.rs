//! How every other part of the cluster reads, watches and writes objects.
//!
//! - [`Client`]: typed requests, over HTTPS or straight into a server in the same process
//! - [`cache`]: one shared informer per kind and client, the only way to watch
//! - [`metadata`]: kinds known only at run time, seen by their metadata
//! - [`pod`]: a pod as the control loops see it
//! - [`object`]: what every kind has, and small readers of metadata
//! - [`request`]: parameters of requests
//! - [`transport`]: the seam between a request and whoever answers it
//! - [`error`]: what can go wrong
//!
//! Invariant: nothing here keeps a second copy of a kind: two callers of [`Client::cache`] share one, as do clients made to share.
//! Invariant: a cache goes back in revision only if the store was put back, and a reader sees each object at one of its real versions.

mod client;

pub mod cache;
pub mod error;
pub mod metadata;
pub mod object;
pub mod pod;
pub mod request;
pub mod transport;
mod watch;

pub use cache::{Cache, Change, Subscription, Update};
pub use client::{Client, Content};
pub use error::{Error, Result};
pub use metadata::{Metadata, Sighting};
pub use object::{Key, Object};
pub use request::{DeleteOptions, List, ListParams, Patch, Preconditions, Propagation};
pub use transport::{Credentials, Https, Transport};
