//! Keeps the disk from filling up with images that nothing uses.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use client::Cache;
use k8s_openapi::api::core::v1::Pod;

use crate::{
    image::{Collect, Image, ImageError, ImageStore},
    runtime::Runtime,
};

/// Above so many hundredths of the disk, images go.
const HIGH: u64 = 85;
/// Until no more than so many are used.
const LOW: u64 = 80;
/// Whoever pulls or imports an image gets so long to use it.
const YOUNG: Duration = Duration::from_secs(120);

/// How full the file system of the images is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Disk {
    used: u64,
    total: u64,
}

impl Disk {
    fn of(dir: &Path) -> std::io::Result<Disk> {
        let fs = nix::sys::statvfs::statvfs(dir)?;
        // What is kept back for root counts as used, as `df` has it.
        let total = fs.blocks() - fs.blocks_free() + fs.blocks_available();
        Ok(Disk { used: total - fs.blocks_available(), total })
    }

    fn above(self, hundredths: u64) -> bool {
        u128::from(self.used) * 100 > u128::from(self.total) * u128::from(hundredths)
    }
}

/// The next image to go: the oldest that nothing uses and that is not young. Pure.
fn next<'a>(images: &'a [(Image, Duration)], in_use: &BTreeSet<String>) -> Option<&'a str> {
    let free = |(image, age): &&(Image, Duration)| !in_use.contains(&image.id) && *age >= YOUNG;
    images.iter().filter(free).max_by_key(|(_, age)| *age).map(|(image, _)| image.id.as_str())
}

/// Images of pods that are assigned to this node, whether or not their containers have been created yet.
fn wanted(images: &ImageStore, pods: &Cache<Pod>) -> BTreeSet<String> {
    let names = pods.list().into_iter().flat_map(|pod| {
        let spec = pod.spec.as_ref();
        let all = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        all.filter_map(|c| c.image.clone()).collect::<BTreeSet<String>>()
    });
    names.filter_map(|name| images.get(&name)).map(|image| image.id).collect()
}

/// Looks at the disk every `interval` until dropped; at the start, what no image refers to goes in any case.
pub async fn run(runtime: Runtime, pods: Arc<Cache<Pod>>, interval: Duration) {
    pods.synced().await;
    let mut first = true;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (runtime, pods) = (runtime.clone(), Arc::clone(&pods));
        let begin = std::mem::take(&mut first);
        let work = move || {
            if begin {
                runtime.images().gc_unless(|| runtime.images_in_use(), Collect::Unreferenced)?;
            }
            relieve(&runtime, &pods)
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(work).await {
            // An image that is being pulled holds it up, most likely: the next tick tries again.
            tracing::debug!(%error, "images could not be collected");
        }
    }
}

/// Removes one image after the other while the disk is too full.
fn relieve(runtime: &Runtime, pods: &Cache<Pod>) -> Result<(), ImageError> {
    let images = runtime.images();
    let look = || Disk::of(images.root()).map_err(ImageError::io("look at the disk of", images.root()));
    if !look()?.above(HIGH) {
        return Ok(());
    }
    // One round per image, as every round but the last removes one.
    for _ in 0..=images.list()?.len() {
        let disk = look()?;
        if !disk.above(LOW) {
            break;
        }
        let now = SystemTime::now();
        let all: Vec<(Image, Duration)> =
            images.list()?.into_iter().map(|i| (i.clone(), images.age(&i, now))).collect();
        let mut in_use = runtime.images_in_use();
        in_use.append(&mut wanted(images, pods));
        let Some(id) = next(&all, &in_use) else {
            tracing::debug!(?disk, "the disk is nearly full, and every image is in use");
            break;
        };
        images.remove(id)?;
        let freed = images.gc_unless(|| runtime.images_in_use(), Collect::Unreferenced)?;
        tracing::info!(image = id, bytes = freed.bytes, "removed an unused image, as the disk is nearly full");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_full_above_the_mark() {
        let table = [(85, 100, 85, false), (86, 100, 85, true), (0, 0, 85, false), (u64::MAX, u64::MAX, 80, true)];
        for (used, total, mark, above) in table {
            assert_eq!(Disk { used, total }.above(mark), above, "{used} of {total}");
        }
        let real = Disk::of(Path::new("/")).expect("a file system");
        assert!(real.total > 0 && real.used <= real.total);
    }

    #[test]
    fn the_oldest_unused_image_goes_first() {
        let image = |id: &str, age: u64| {
            let image = Image {
                id: id.to_owned(),
                digest: String::new(),
                reference: format!("docker.io/library/{id}:1"),
                config: crate::image::ImageConfig::default(),
                layers: Vec::new(),
                size: 1,
            };
            (image, Duration::from_secs(age))
        };
        let images = [image("a", 900), image("b", 600), image("c", 300), image("d", 10)];
        let table: [(&[&str], Option<&str>); 4] =
            [(&[], Some("a")), (&["a"], Some("b")), (&["a", "b"], Some("c")), (&["a", "b", "c"], None)];
        for (in_use, expected) in table {
            let in_use = in_use.iter().map(|id| (*id).to_owned()).collect();
            assert_eq!(next(&images, &in_use), expected, "{in_use:?}");
        }
    }
}
