//! The control loops as the runtime knows them: whom a change concerns, what one look sees, and whose plan it is.

mod garbage;
mod network;
mod nodes;
mod spaces;
mod workloads;

use std::sync::Arc;

use client::Client;
use tokio::task::JoinSet;

use crate::{
    Config,
    act::Actor,
    caches::Caches,
    events::Recorder,
    runtime::{self, Controller, Feeds},
};

/// Starts every loop; all of them end when the set is dropped.
pub async fn start(client: Client, config: Config) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let (recorder, record) = Recorder::new(client.clone());
    tasks.spawn(record);
    let caches = Caches::new(&client);
    let actor = Actor { client: client.clone(), caches: caches.clone(), recorder };
    let mut begin = Begin { tasks: &mut tasks, actor: &actor };
    // Namespaces and nodes come first: somebody waits for a new one.
    let namespaces = spaces::start(&mut begin, &config);
    nodes::start(&mut begin, &config);
    workloads::start(&mut begin);
    network::start(&mut begin);
    garbage::start(&mut begin, namespaces);
    tasks
}

/// What a loop needs to begin.
struct Begin<'a> {
    tasks: &'a mut JoinSet<()>,
    actor: &'a Actor,
}

impl Begin<'_> {
    fn caches(&self) -> &Caches {
        &self.actor.caches
    }

    /// Runs a controller as soon as the caches are filled. Its feeds have been listening since before.
    fn run<C: Controller>(&mut self, controller: Arc<C>, feeds: Feeds) {
        let actor = self.actor.clone();
        self.tasks.spawn(async move {
            actor.caches.synced().await;
            runtime::drive(controller, actor, feeds).await;
        });
    }
}
