//! `minik8s image`: a node's images, looked after from the command line.

use anyhow::{Context, Result};
use node::image::{Collect, ImageStore, Registries};

use crate::flags::{Image, ImageAction};

pub async fn run(flags: Image) -> Result<()> {
    let images = ImageStore::open(&flags.data.data_dir, Registries::default())?;
    match flags.action {
        ImageAction::Import { file } => {
            for image in images.import(&file).await.with_context(|| format!("import {}", file.display()))? {
                println!("{}", image.reference);
            }
        }
        ImageAction::Ls => {
            for image in images.list()? {
                println!("{}\t{}", image.reference, image.digest);
            }
        }
        ImageAction::Rm { images: names } => {
            for name in names {
                anyhow::ensure!(images.remove(&name)?, "no image is named {name}: `minik8s image ls` lists them");
            }
        }
        ImageAction::Gc => {
            let collected = images.gc(&node::runtime::images_in_use(&flags.run.run_dir), Collect::Unused)?;
            collected.images.iter().for_each(|name| println!("{name}"));
            println!("{} bytes given back", collected.bytes);
        }
    }
    Ok(())
}
