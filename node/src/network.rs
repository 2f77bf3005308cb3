//! The pod network behind its seam: it comes up while pods are already waiting for it.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use netdata::Netdata;
use tokio::sync::watch;

use crate::{
    backend::{Doing, PodNetwork},
    pod::error_text,
};

/// A pod that finds no network after this time fails its attempt with a reason, and tries again.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network that may not be up yet.
#[derive(Clone)]
pub struct Network {
    up: watch::Receiver<Option<Arc<Netdata>>>,
}

impl Network {
    pub fn new(up: watch::Receiver<Option<Arc<Netdata>>>) -> Network {
        Network { up }
    }

    pub fn now(&self) -> Option<Arc<Netdata>> {
        self.up.borrow().clone()
    }

    async fn wait(&self) -> Result<Arc<Netdata>, String> {
        let mut up = self.up.clone();
        let found = tokio::time::timeout(PATIENCE, up.wait_for(Option::is_some)).await;
        let Ok(Ok(network)) = found else { return Err("the node's pod network is not up".to_owned()) };
        network.clone().ok_or_else(|| "the node's pod network is not up".to_owned())
    }
}

impl PodNetwork for Network {
    fn attach(&self, netns: PathBuf, pod_uid: String) -> Doing<'_, IpAddr, String> {
        Box::pin(async move {
            let network = self.wait().await?;
            let attachment = network.attach(&netns, &pod_uid).await;
            attachment.map(|attachment| attachment.ip).map_err(|error| error_text(&error))
        })
    }

    fn detach(&self, pod_uid: String) -> Doing<'_, (), String> {
        Box::pin(async move {
            let network = self.wait().await?;
            network.detach(&pod_uid).await.map_err(|error| error_text(&error))
        })
    }
}
