//! `minik8s image`: a node's images, looked after from the command line.

use anyhow::{Context, Result};

use crate::flags::{Image, ImageAction};

pub async fn run(flags: Image) -> Result<()> {
    let images = node::image::ImageStore::open(&flags.data.data_dir)?;
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
                images.remove(&name).with_context(|| format!("remove {name}"))?;
            }
        }
        ImageAction::Gc => {
            for name in images.gc()? {
                println!("{name}");
            }
        }
    }
    Ok(())
}
