//! Strategic merge patch: a merge patch whose lists merge too, by the keys and strategies that the type's fields have.
//!
//! Besides the fields, a patch may carry directives: `$patch` (`replace` or `delete` the object, list or element it
//! stands in; `merge` is what happens anyway), `$retainKeys` (drop every other field), `$setElementOrder/<list>` (the
//! order of a list, by its elements' keys) and `$deleteFromPrimitiveList/<list>` (values to take out).

use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
};

use serde_json::{Map, Value};

use super::Error;
use crate::schema::{Field, Message, Type};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_VALUES: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// `current` as the patch changes it.
pub fn apply(message: &'static Message, current: &Value, patch: &Value) -> Result<Value, Error> {
    let mut merge = Merge { path: String::new() };
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err(merge.malformed("a strategic merge patch is an object"));
    };
    merge.object(Some(message), current.clone(), patch).map(Value::Object)
}

/// What `$patch` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Directive {
    Merge,
    Replace,
    Delete,
}

struct Merge {
    path: String,
}

impl Merge {
    fn object(
        &mut self,
        message: Option<&'static Message>,
        mut current: Object,
        patch: &Object,
    ) -> Result<Object, Error> {
        match self.directive(patch)? {
            Directive::Merge => {}
            Directive::Replace => return Ok(new_object(patch)),
            Directive::Delete => return Ok(Object::new()),
        }
        self.retain_keys(&mut current, patch)?;
        for (name, order) in patch {
            if let Some(list) = name.strip_prefix(SET_ORDER) {
                self.within(list, |this| this.ordered_list(message, &mut current, patch, list, order))?;
            }
        }
        for (name, value) in patch {
            if let Some(list) = name.strip_prefix(DELETE_VALUES) {
                self.within(list, |this| this.delete_values(&mut current, list, value))?;
            } else if !is_directive(name) && !patch.contains_key(&format!("{SET_ORDER}{name}")) {
                let field = message.and_then(|m| m.field(name));
                self.within(name, |this| this.field(field, &mut current, name, value))?;
            }
        }
        Ok(current)
    }

    fn field(
        &mut self,
        field: Option<&'static Field>,
        current: &mut Object,
        name: &str,
        patch: &Value,
    ) -> Result<(), Error> {
        let old = current.remove(name);
        let new = match (old, patch) {
            (_, Value::Null) => return Ok(()),
            (Some(Value::Object(old)), Value::Object(patch)) if !replaces(field) => {
                let message = field.and_then(|f| object_type(&f.ty));
                Value::Object(self.object(message, old, patch)?)
            }
            (Some(Value::Array(old)), Value::Array(patch)) if merges(field) => {
                Value::Array(self.list(field, old, patch)?)
            }
            (old, Value::Array(patch)) if merges(field) => {
                // Nothing to merge with, but elements may still be directives.
                debug_assert!(!matches!(old, Some(Value::Array(_))));
                Value::Array(self.list(field, Vec::new(), patch)?)
            }
            (_, patch) => new_value(patch),
        };
        current.insert(name.to_owned(), new);
        Ok(())
    }

    /// A list whose order the patch gives; the patch may also change its elements.
    fn ordered_list(
        &mut self,
        message: Option<&'static Message>,
        current: &mut Object,
        patch: &Object,
        name: &str,
        order: &Value,
    ) -> Result<(), Error> {
        let field = message.and_then(|m| m.field(name));
        let Value::Array(order) = order else { return Err(self.malformed("$setElementOrder is a list")) };
        let changes = match patch.get(name) {
            None => None,
            Some(Value::Array(changes)) => Some(changes),
            // Null takes the list away, whatever its order would have been.
            Some(Value::Null) => {
                current.remove(name);
                return Ok(());
            }
            Some(_) => return Err(self.malformed("expected a list")),
        };
        let old = match current.remove(name) {
            Some(Value::Array(old)) => Some(old),
            _ => None,
        };
        let key = field.and_then(|f| f.patch_merge_key);
        if let Some(changes) = changes {
            self.check_order(key, changes, order)?;
        }
        let merged = match (old.clone(), changes) {
            (None, None) => return Ok(()),
            (Some(old), None) => old,
            (old, Some(changes)) if merges(field) => self.list(field, old.unwrap_or_default(), changes)?,
            (_, Some(changes)) => changes.iter().map(new_value).collect(),
        };
        let sorted = in_order(key, merged, order, &old.unwrap_or_default());
        current.insert(name.to_owned(), Value::Array(sorted));
        Ok(())
    }

    /// The elements of a patch's list must stand in the order that the patch asks for, or it contradicts itself.
    fn check_order(&self, key: Option<&str>, changes: &[Value], order: &[Value]) -> Result<(), Error> {
        let mut rest = order.iter();
        for change in changes {
            if change.get(PATCH).is_some() {
                continue;
            }
            if !rest.any(|o| identity(key, o) == identity(key, change)) {
                return Err(self.malformed("the list's elements do not match the order in $setElementOrder"));
            }
        }
        Ok(())
    }

    fn list(&mut self, field: Option<&'static Field>, old: Vec<Value>, patch: &[Value]) -> Result<Vec<Value>, Error> {
        let Some(key) = field.and_then(|f| f.patch_merge_key) else {
            return self.values(old, patch);
        };
        let message = field.and_then(|f| f.ty.message());
        let mut merged = old.clone();
        let mut replace = false;
        let mut deleted = HashSet::new();
        let mut changes = Vec::new();
        for (i, change) in patch.iter().enumerate() {
            let Value::Object(change) = change else {
                return Err(self.malformed(format!("element {i} is no object")));
            };
            let directive = self.directive(change)?;
            match (directive, change.get(key)) {
                (Directive::Replace, _) => replace = true,
                (_, None) => return Err(self.malformed(format!("element {i} lacks its merge key {key:?}"))),
                (Directive::Delete, Some(id)) => {
                    deleted.insert(id);
                }
                (Directive::Merge, Some(id)) => changes.push((id, change)),
            }
        }
        if replace {
            return Ok(changes.into_iter().map(|(_, change)| Value::Object(new_object(change))).collect());
        }
        merged.retain(|v| v.get(key).is_none_or(|id| !deleted.contains(id)));
        let mut places: HashMap<Value, usize> = HashMap::new();
        for (i, element) in merged.iter().enumerate() {
            if let Some(id) = element.get(key) {
                places.entry(id.clone()).or_insert(i);
            }
        }
        for (id, change) in &changes {
            let place = places.get(*id).copied();
            match place.map(|i| (i, merged[i].take())) {
                Some((i, Value::Object(old))) => {
                    let new = self.within(&element(key, id), |this| this.object(message, old, change))?;
                    merged[i] = Value::Object(new);
                }
                _ => {
                    places.insert((*id).clone(), merged.len());
                    merged.push(Value::Object(new_object(change)));
                }
            }
        }
        let order: Vec<Value> = changes.iter().map(|(_, change)| Value::Object((*change).clone())).collect();
        Ok(in_order(Some(key), merged, &order, &old))
    }

    /// A list of plain values is a set.
    fn values(&mut self, old: Vec<Value>, patch: &[Value]) -> Result<Vec<Value>, Error> {
        if patch.iter().any(|v| v.is_object() || v.is_array()) {
            return Err(self.malformed("the list's elements must be plain values"));
        }
        let mut seen = HashSet::new();
        let merged = old.iter().chain(patch).filter(|v| seen.insert(*v)).cloned().collect();
        Ok(in_order(None, merged, patch, &old))
    }

    fn delete_values(&mut self, current: &mut Object, name: &str, values: &Value) -> Result<(), Error> {
        let Value::Array(values) = values else {
            return Err(self.malformed("$deleteFromPrimitiveList is a list"));
        };
        if let Some(Value::Array(list)) = current.get_mut(name) {
            let values: HashSet<&Value> = values.iter().collect();
            list.retain(|v| !values.contains(v));
        }
        Ok(())
    }

    fn retain_keys(&self, current: &mut Object, patch: &Object) -> Result<(), Error> {
        let Some(keys) = patch.get(RETAIN_KEYS) else { return Ok(()) };
        let Value::Array(keys) = keys else { return Err(self.malformed("$retainKeys is a list")) };
        let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
        let kept = |name: &str| keys.contains(name);
        if let Some((name, _)) = patch.iter().find(|(n, v)| !v.is_null() && !is_directive(n) && !kept(n)) {
            return Err(self.malformed(format!("field {name:?} is set, but not in $retainKeys")));
        }
        current.retain(|name, _| kept(name));
        Ok(())
    }

    fn directive(&self, patch: &Object) -> Result<Directive, Error> {
        match patch.get(PATCH) {
            None => Ok(Directive::Merge),
            Some(Value::String(s)) if s == "merge" => Ok(Directive::Merge),
            Some(Value::String(s)) if s == "replace" => Ok(Directive::Replace),
            Some(Value::String(s)) if s == "delete" => Ok(Directive::Delete),
            Some(other) => Err(self.malformed(format!("unknown directive $patch: {other}"))),
        }
    }

    fn within<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let length = self.path.len();
        if length > 0 && !name.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(name);
        let result = f(self)?;
        self.path.truncate(length);
        Ok(result)
    }

    fn malformed(&self, what: impl Into<String>) -> Error {
        let path = if self.path.is_empty() { "(root)".to_owned() } else { self.path.clone() };
        Error::Malformed { path, what: what.into() }
    }
}

fn is_directive(name: &str) -> bool {
    name == PATCH || name == RETAIN_KEYS || name.starts_with(SET_ORDER) || name.starts_with(DELETE_VALUES)
}

fn merges(field: Option<&Field>) -> bool {
    field.is_some_and(|f| f.patch_strategies.merge)
}

fn replaces(field: Option<&Field>) -> bool {
    field.is_some_and(|f| f.patch_strategies.replace)
}

/// The type of a field that is one object.
fn object_type(ty: &Type) -> Option<&'static Message> {
    if matches!(ty, Type::Message(_)) { ty.message() } else { None }
}

/// A patch's value where there was none: without nulls and directives, which were about something to be changed.
fn new_value(patch: &Value) -> Value {
    match patch {
        Value::Object(fields) => Value::Object(new_object(fields)),
        Value::Array(items) => {
            let deleted = |v: &&Value| v.get(PATCH).is_some_and(|d| d == "delete");
            Value::Array(items.iter().filter(|v| !deleted(v)).map(new_value).collect())
        }
        other => other.clone(),
    }
}

fn new_object(patch: &Object) -> Object {
    let kept = patch.iter().filter(|(name, value)| !value.is_null() && !is_directive(name));
    kept.map(|(name, value)| (name.clone(), new_value(value))).collect()
}

/// What makes an element of a list the same as another: its merge key, or all of it.
fn identity<'a>(key: Option<&str>, value: &'a Value) -> Option<&'a Value> {
    match key {
        Some(key) => value.get(key),
        None => Some(value),
    }
}

/// Where each element first stands. A map, as lists in a patch may be long and searching would take their square.
fn places<'a>(key: Option<&str>, list: &'a [Value]) -> HashMap<Option<&'a Value>, usize> {
    let mut places = HashMap::with_capacity(list.len());
    for (i, element) in list.iter().enumerate() {
        places.entry(identity(key, element)).or_insert(i);
    }
    places
}

/// `[name=web]`
fn element(key: &str, id: &Value) -> String {
    let mut text = format!("[{key}=");
    let _ = match id {
        Value::String(s) => text.write_str(s),
        other => write!(text, "{other}"),
    };
    text.push(']');
    text
}

/// Sorts a merged list: the elements that the patch orders stand in that order, the others stay where they were among
/// those that the old list had, as far as both can be true.
fn in_order(key: Option<&str>, merged: Vec<Value>, order: &[Value], old: &[Value]) -> Vec<Value> {
    let (order, old) = (places(key, order), places(key, old));
    let place = |list: &HashMap<_, usize>, v: &Value| list.get(&identity(key, v)).copied();
    let (mut ordered, mut others): (Vec<_>, Vec<_>) = merged.into_iter().partition(|v| place(&order, v).is_some());
    ordered.sort_by_key(|v| place(&order, v));
    others.sort_by_key(|v| place(&old, v));
    let (mut ordered, mut others) = (ordered.into_iter().peekable(), others.into_iter().peekable());
    let mut sorted = Vec::with_capacity(ordered.len() + others.len());
    loop {
        let next = match (others.peek(), ordered.peek()) {
            (None, None) => return sorted,
            (Some(other), Some(first)) => match (place(&old, other), place(&old, first)) {
                (Some(a), Some(b)) if a < b => others.next(),
                _ => ordered.next(),
            },
            (Some(_), None) => others.next(),
            (None, Some(_)) => ordered.next(),
        };
        sorted.extend(next);
    }
}
