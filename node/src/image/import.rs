//! Import.
use std::path::Path;

use super::{Image, ImageError, ImageStore};

pub(super) fn import(_store: &ImageStore, path: &Path) -> Result<Vec<Image>, ImageError> {
    Err(ImageError::io("import", path)(std::io::ErrorKind::Unsupported.into()))
}
