//! Which form an answer takes, and which form a body has. Pure.

use api::status::Status;

/// Media types that a response can have.
pub const RESPONSES: &[&str] = &["application/json", "application/yaml"];
/// Media types that a request body can have.
pub const REQUESTS: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaVersion {
    V1,
    V1beta1,
}

impl MetaVersion {
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// What is shown of each object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Object,
    Table(MetaVersion),
    /// Metadata only.
    Partial(MetaVersion),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub shape: Shape,
    pub format: Format,
    pub indent: Indent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indent {
    Compact,
    /// `?pretty=true`
    Pretty,
}

impl Form {
    pub const JSON: Self = Self { shape: Shape::Object, format: Format::Json, indent: Indent::Compact };

    /// Whether stored bytes can be sent as they are.
    pub fn is_plain(self) -> bool {
        self == Self::JSON
    }

    pub fn content_type(self) -> &'static str {
        match self.format {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
        }
    }
}

/// The first form of an `Accept` header that we can give.
pub fn response(accept: &str, indent: Indent) -> Result<Form, Status> {
    if accept.trim().is_empty() {
        return Ok(Form { indent, ..Form::JSON });
    }
    let form = accept.split(',').find_map(|clause| one(clause, indent));
    form.ok_or_else(|| Status::not_acceptable(RESPONSES))
}

fn one(clause: &str, indent: Indent) -> Option<Form> {
    let mut parts = clause.split(';').map(str::trim);
    let format = match parts.next()? {
        "*/*" | "application/*" | "application/json" => Format::Json,
        "application/yaml" | "application/x-yaml" | "text/yaml" => Format::Yaml,
        _ => return None,
    };
    let (mut shape, mut version, mut group) = ("", "v1", "meta.k8s.io");
    for (name, value) in parts.filter_map(|p| p.split_once('=')) {
        match name {
            "as" => shape = value,
            "v" => version = value,
            "g" => group = value,
            // Weights, character sets and streaming hints change nothing.
            _ => {}
        }
    }
    let shape = if shape.is_empty() {
        Shape::Object
    } else {
        let version = match (group, version) {
            ("meta.k8s.io", "v1") => MetaVersion::V1,
            ("meta.k8s.io", "v1beta1") => MetaVersion::V1beta1,
            _ => return None,
        };
        match shape {
            "Table" => Shape::Table(version),
            "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Partial(version),
            _ => return None,
        }
    };
    Some(Form { shape, format, indent })
}

/// How a request body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    Json,
    Yaml,
    Protobuf,
}

/// The format behind a `Content-Type`; JSON when there is none, as upstream reads it.
pub fn body(content_type: &str) -> Result<BodyFormat, Status> {
    match media_type(content_type) {
        "" | "application/json" | "*/*" => Ok(BodyFormat::Json),
        "application/yaml" | "application/x-yaml" => Ok(BodyFormat::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(BodyFormat::Protobuf),
        _ => Err(Status::unsupported_media_type(REQUESTS)),
    }
}

pub fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_headers() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        for (accept, want) in [
            ("", Some((Shape::Object, Format::Json))),
            ("*/*", Some((Shape::Object, Format::Json))),
            (kubectl, Some((Shape::Table(MetaVersion::V1), Format::Json))),
            ("application/vnd.kubernetes.protobuf,application/json", Some((Shape::Object, Format::Json))),
            ("application/vnd.kubernetes.protobuf", None),
            ("application/yaml", Some((Shape::Object, Format::Yaml))),
            (
                "application/json; as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Some((Shape::Partial(MetaVersion::V1), Format::Json)),
            ),
            ("application/json;as=Table;g=meta.k8s.io;v=v9", None),
            ("application/json;as=Table;g=meta.k8s.io;v=v9,*/*;q=0.1", Some((Shape::Object, Format::Json))),
            ("text/html", None),
        ] {
            let form = response(accept, Indent::Compact);
            assert_eq!(form.as_ref().ok().map(|f| (f.shape, f.format)), want, "{accept}");
            if want.is_none() {
                assert_eq!(form.unwrap_err().code, 406, "{accept}");
            }
        }
        assert!(Form::JSON.is_plain());
        assert!(!response("", Indent::Pretty).unwrap().is_plain());
    }

    #[test]
    fn content_types() {
        assert_eq!(body("application/json; charset=utf-8").unwrap(), BodyFormat::Json);
        assert_eq!(body("").unwrap(), BodyFormat::Json);
        assert_eq!(body("application/yaml").unwrap(), BodyFormat::Yaml);
        assert_eq!(body("application/vnd.kubernetes.protobuf").unwrap(), BodyFormat::Protobuf);
        assert_eq!(body("text/plain").unwrap_err().code, 415);
    }
}
