//! The fields of every type that the server can meet: their numbers in protobuf, their JSON names and types, and how
//! patches merge them. One text table (`data/fields.txt`, printed by `data/fields/main.go`) holds the facts:
//!
//! ```text
//! @ core io.k8s.api.core.v1 v1          a package: its alias, its name in OpenAPI, its apiVersion
//! = PodSpec kind atomic                 a type; `kind`: has apiVersion and kind; `atomic`: one owner in apply;
//!                                       `list`: a plain list in JSON; `union`: `schema` or its other field in JSON
//! 1 volumes []Volume?* p:merge k:name   a field: number, name (`~`: its fields stand in the parent), type,
//!                                       `?` left out of JSON when empty, `*` empty is not the same as absent
//!                                       p: patch strategies, k: patch merge key, l: list type, m: list map keys
//! ```
//!
//! The text stays where the binary has it; a type's fields are parsed when they are first asked for, so a server
//! that serves twenty kinds never pays for the other hundred.

use std::{
    collections::HashMap,
    sync::{LazyLock, OnceLock},
};

mod decode;

pub use decode::{Mismatch, decode};
pub(crate) use decode::{depth, is_empty, write_time, zero};

static TEXT: &str = include_str!("../data/fields.txt");
static TABLE: LazyLock<Vec<Package>> = LazyLock::new(read);

/// One group and version.
struct Package {
    alias: &'static str,
    name: &'static str,
    api_version: &'static str,
    messages: HashMap<&'static str, Message>,
}

/// One type with fields.
#[derive(Debug)]
pub struct Message {
    package: &'static str,
    api_version: &'static str,
    alias: &'static str,
    /// The name without its package: `PodSpec`.
    pub short_name: &'static str,
    pub form: Form,
    /// Has `apiVersion` and `kind`.
    pub is_kind: bool,
    /// Server-side apply takes the whole of it as one field.
    pub atomic: bool,
    text: &'static str,
    fields: OnceLock<Box<[Field]>>,
}

/// How a message looks in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Object,
    /// The only field, a list, stands for the whole.
    List,
    /// The field `schema` if it is set, otherwise the other field, stands for the whole.
    Union,
}

#[derive(Debug)]
pub struct Field {
    pub number: u32,
    /// The name in JSON; empty for an inline field.
    pub name: &'static str,
    pub ty: Type,
    pub presence: Presence,
    pub patch_strategies: PatchStrategies,
    pub patch_merge_key: Option<&'static str>,
    pub list_type: Option<ListType>,
    pub list_map_keys: Box<[&'static str]>,
    /// Server-side apply takes this map or object as one field.
    pub atomic: bool,
}

#[derive(Debug)]
pub enum Type {
    String,
    Int32,
    Int64,
    Double,
    Bool,
    Bytes,
    Time,
    MicroTime,
    /// Nanoseconds in protobuf, `1h2m3s` in JSON.
    Duration,
    Quantity,
    IntOrString,
    /// Any JSON; bytes of JSON in protobuf.
    Raw,
    Message(&'static Message),
    List(Box<Type>),
    /// The keys are strings.
    Map(Box<Type>),
}

/// What an empty value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Always written, even when empty.
    Always,
    /// Left out when empty.
    UnlessEmpty,
    /// Left out when absent; an empty value is a value.
    Optional,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategies {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map,
}

/// The type with this OpenAPI name, such as `io.k8s.api.core.v1.PodSpec`.
pub fn message(name: &str) -> Option<&'static Message> {
    let (package, short) = name.rsplit_once('.')?;
    TABLE.iter().find(|p| p.name == package)?.messages.get(short)
}

/// The type of a body that says `api_version` and `kind`. Options and statuses may come under any group's version.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Message> {
    let of = |p: &'static Package| p.messages.get(kind).filter(|m| m.is_kind);
    TABLE.iter().find(|p| p.api_version == api_version).and_then(of).or_else(|| of(TABLE.first()?))
}

impl Message {
    /// The name in OpenAPI: `io.k8s.api.core.v1.PodSpec`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.package, self.short_name)
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> &'static str {
        self.api_version
    }

    /// In the order of their numbers.
    pub fn fields(&self) -> &[Field] {
        self.fields.get_or_init(|| self.text.lines().map(|line| read_field(line, self.alias)).collect())
    }

    /// The field with this JSON name, also where it belongs to an inline field's type.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields().iter().find_map(|f| match &f.ty {
            Type::Message(inner) if f.is_inline() => inner.field(name),
            _ => (f.name == name).then_some(f),
        })
    }

    pub fn field_numbered(&self, number: u32) -> Option<&Field> {
        let fields = self.fields();
        fields.binary_search_by_key(&number, |f| f.number).ok().map(|i| &fields[i])
    }

    /// Every field as JSON shows them: those of inline fields stand among the others.
    pub fn json_fields(&self) -> Vec<&Field> {
        let mut all = Vec::new();
        for f in self.fields() {
            match &f.ty {
                Type::Message(inner) if f.is_inline() => all.extend(inner.json_fields()),
                _ => all.push(f),
            }
        }
        all
    }
}

impl Field {
    /// The field's own fields stand in the parent's JSON object.
    pub fn is_inline(&self) -> bool {
        self.name.is_empty()
    }
}

impl Type {
    /// The message that objects, list elements or map values of this type are.
    pub fn message(&self) -> Option<&'static Message> {
        match self {
            Type::Message(m) if m.form == Form::Object => Some(m),
            Type::List(inner) | Type::Map(inner) => inner.message(),
            _ => None,
        }
    }
}

/// Finds where each type's lines are. The table is part of the program: a broken line in it is a bug that every test
/// of this module meets, hence the panics here and below.
fn read() -> Vec<Package> {
    let mut packages: Vec<Package> = Vec::new();
    for text in TEXT.split("\n@ ").map(|t| t.trim_start_matches("@ ")) {
        let (head, body) = text.split_once('\n').unwrap_or((text, ""));
        let mut words = head.split(' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("fields.txt: package {head:?}"));
        let mut package = Package { alias: word(), name: word(), api_version: word(), messages: HashMap::new() };
        for text in body.trim_end().split("\n= ").map(|t| t.trim_start_matches("= ")) {
            let message = read_message(text, &package);
            package.messages.insert(message.short_name, message);
        }
        package.messages.shrink_to_fit();
        packages.push(package);
    }
    packages
}

fn read_message(text: &'static str, package: &Package) -> Message {
    let (head, text) = text.split_once('\n').unwrap_or((text, ""));
    let mut words = head.split(' ');
    let mut message = Message {
        package: package.name,
        api_version: package.api_version,
        alias: package.alias,
        short_name: words.next().unwrap_or_default(),
        form: Form::Object,
        is_kind: false,
        atomic: false,
        text,
        fields: OnceLock::new(),
    };
    for word in words {
        match word {
            "kind" => message.is_kind = true,
            "atomic" => message.atomic = true,
            "list" => message.form = Form::List,
            "union" => message.form = Form::Union,
            _ => panic!("fields.txt: type {head:?}"),
        }
    }
    message
}

fn read_field(line: &'static str, package: &str) -> Field {
    let bad = || -> ! { panic!("fields.txt: field {line:?}") };
    let mut words = line.split(' ');
    let (Some(number), Some(name), Some(ty)) = (words.next(), words.next(), words.next()) else { bad() };
    let presence = match ty {
        _ if ty.ends_with('*') => Presence::Optional,
        _ if ty.ends_with('?') => Presence::UnlessEmpty,
        _ => Presence::Always,
    };
    let mut field = Field {
        number: number.parse().unwrap_or_else(|_| bad()),
        name: if name == "~" { "" } else { name },
        ty: read_type(ty.trim_end_matches(['?', '*']), package).unwrap_or_else(|| bad()),
        presence,
        patch_strategies: PatchStrategies::default(),
        patch_merge_key: None,
        list_type: None,
        list_map_keys: Box::default(),
        atomic: false,
    };
    for word in words {
        match word.split_once(':').unwrap_or((word, "")) {
            ("p", strategies) => {
                for strategy in strategies.split(',') {
                    match strategy {
                        "merge" => field.patch_strategies.merge = true,
                        "replace" => field.patch_strategies.replace = true,
                        "retainKeys" => field.patch_strategies.retain_keys = true,
                        _ => bad(),
                    }
                }
            }
            ("k", key) => field.patch_merge_key = Some(key),
            ("l", "atomic") => field.list_type = Some(ListType::Atomic),
            ("l", "set") => field.list_type = Some(ListType::Set),
            ("l", "map") => field.list_type = Some(ListType::Map),
            ("m", keys) => field.list_map_keys = keys.split(',').collect(),
            ("atomic", _) => field.atomic = true,
            _ => bad(),
        }
    }
    field
}

fn read_type(text: &str, package: &str) -> Option<Type> {
    if let Some(inner) = text.strip_prefix("[]") {
        return Some(Type::List(Box::new(read_type(inner, package)?)));
    }
    if let Some(inner) = text.strip_prefix("{}") {
        return Some(Type::Map(Box::new(read_type(inner, package)?)));
    }
    Some(match text {
        "str" => Type::String,
        "i32" => Type::Int32,
        "i64" => Type::Int64,
        "f64" => Type::Double,
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "time" => Type::Time,
        "microtime" => Type::MicroTime,
        "duration" => Type::Duration,
        "quantity" => Type::Quantity,
        "intstr" => Type::IntOrString,
        "raw" | "json" => Type::Raw,
        name => {
            let (package, short) = name.split_once('.').unwrap_or((package, name));
            Type::Message(TABLE.iter().find(|p| p.alias == package)?.messages.get(short)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_reads() {
        let (mut messages, mut fields) = (0, 0);
        for package in TABLE.iter() {
            for m in package.messages.values() {
                messages += 1;
                fields += m.fields().len();
                for f in m.fields() {
                    assert!(m.field_numbered(f.number).is_some(), "{} {}", m.name(), f.number);
                    assert!(f.patch_merge_key.is_none() || f.patch_strategies.merge, "{} {}", m.name(), f.name);
                    let keyed = f.list_type == Some(ListType::Map);
                    assert_eq!(keyed, !f.list_map_keys.is_empty(), "{} {}", m.name(), f.name);
                }
            }
        }
        assert!(messages > 600 && fields > 2000, "{messages} types, {fields} fields");
    }

    #[test]
    fn every_served_kind_is_in_the_table() {
        for kind in crate::registry::ALL {
            let m = message(kind.schema).unwrap_or_else(|| panic!("{} is not in the table", kind.schema));
            assert!(m.is_kind && m.api_version() == kind.api_version() && m.short_name == kind.kind, "{m:?}");
        }
    }

    #[test]
    fn looks_up() {
        let spec = message("io.k8s.api.core.v1.PodSpec").unwrap();
        assert_eq!(spec.name(), "io.k8s.api.core.v1.PodSpec");
        let volumes = spec.field("volumes").unwrap();
        assert_eq!((volumes.number, volumes.patch_merge_key), (1, Some("name")));
        assert_eq!(volumes.patch_strategies, PatchStrategies { merge: true, replace: false, retain_keys: true });
        assert_eq!((volumes.list_type, &*volumes.list_map_keys), (Some(ListType::Map), &["name"][..]));
        // A volume's source stands in the volume itself.
        let volume = volumes.ty.message().unwrap();
        assert_eq!(volume.field("emptyDir").unwrap().presence, Presence::Optional);
        assert!(volume.field("nope").is_none() && message("io.k8s.api.core.v1.Nope").is_none());
        assert_eq!(by_kind("apps/v1", "Deployment").unwrap().short_name, "Deployment");
        assert_eq!(by_kind("apps/v1", "DeleteOptions").unwrap().api_version(), "meta.k8s.io/v1");
        assert!(by_kind("v1", "PodSpec").is_none() && by_kind("v1", "Deployment").is_none());
    }
}
