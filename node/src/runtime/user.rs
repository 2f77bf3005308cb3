//! Who a container's processes run as: the pod's word, else the image's, looked up in the image's own files.

use crate::image::Root;

use super::types::UserSpec;

/// A passwd or group file past this is cut: nobody has that many users.
const MAX_FILE: u64 = 1 << 20;
/// Linux's `setgroups` takes no more, and a file must not make it fail.
const MAX_GROUPS: usize = 1024;
/// Past it, ids wrap or are refused in one place or another (CVE-2024-40635): the API's own bound.
const MAX_ID: i64 = i32::MAX as i64;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional: Vec<u32>,
}

/// Looks the user up inside a mounted root file system.
pub fn resolve(root: &Root, image_user: &str, spec: &UserSpec) -> Result<User, String> {
    let read = |path| String::from_utf8_lossy(&root.read(path, MAX_FILE).unwrap_or_default()).into_owned();
    resolve_in(&read("etc/passwd"), &read("etc/group"), image_user, spec)
}

fn resolve_in(passwd: &str, group: &str, image_user: &str, spec: &UserSpec) -> Result<User, String> {
    let (image_user, image_group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (image_user, None),
    };
    let wanted = match spec.uid {
        Some(uid) => Wanted::Id(id("runAsUser", uid)?),
        None if image_user.is_empty() => Wanted::Id(0),
        None => parse(image_user)?,
    };
    let entry = passwd.lines().filter_map(Entry::parse).find(|e| match &wanted {
        Wanted::Id(uid) => e.id == *uid,
        Wanted::Name(name) => e.name == *name,
    });
    let uid = match (&wanted, &entry) {
        (Wanted::Id(uid), _) => *uid,
        (Wanted::Name(_), Some(entry)) => entry.id,
        (Wanted::Name(name), None) => {
            return Err(format!("unable to find user {name}: no matching entries in passwd file"));
        }
    };
    if spec.must_not_be_root && uid == 0 {
        return Err("container has runAsNonRoot and image will run as root".to_owned());
    }
    let gid = match (spec.gid, image_group.filter(|_| spec.uid.is_none())) {
        (Some(gid), _) => id("runAsGroup", gid)?,
        (None, Some(name)) => match parse(name)? {
            Wanted::Id(gid) => gid,
            Wanted::Name(name) => group
                .lines()
                .filter_map(Entry::parse)
                .find(|e| e.name == name)
                .map(|e| e.id)
                .ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))?,
        },
        (None, None) => entry.as_ref().and_then(|e| e.primary_group).unwrap_or(0),
    };
    let mut additional = spec.supplemental_groups.clone();
    if let Some(entry) = &entry {
        let member = |line: &&str| line.rsplit(':').next().is_some_and(|m| m.split(',').any(|name| name == entry.name));
        additional.extend(group.lines().filter(member).filter_map(Entry::parse).map(|e| e.id));
    }
    additional.push(gid);
    additional.sort_unstable();
    additional.dedup();
    additional.truncate(MAX_GROUPS);
    Ok(User { uid, gid, additional })
}

enum Wanted {
    Id(u32),
    Name(String),
}

fn parse(text: &str) -> Result<Wanted, String> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let number = text.parse::<i64>().map_err(|_| format!("user {text}: no such id can exist"))?;
        return Ok(Wanted::Id(id("user", number)?));
    }
    Ok(Wanted::Name(text.to_owned()))
}

fn id(what: &str, number: i64) -> Result<u32, String> {
    if (0..=MAX_ID).contains(&number) {
        return u32::try_from(number).map_err(|e| e.to_string());
    }
    Err(format!("{what} {number} is not between 0 and {MAX_ID}"))
}

/// A line of passwd (`name:x:uid:gid:..`) or group (`name:x:gid:members`).
struct Entry {
    name: String,
    id: u32,
    primary_group: Option<u32>,
}

impl Entry {
    fn parse(line: &str) -> Option<Entry> {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let id = fields.nth(1)?.parse().ok()?;
        let primary_group = fields.next().and_then(|f| f.parse().ok());
        Some(Entry { name, id, primary_group })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlogs:x:200:other,web\ndisk:x:6:webber\n";

    #[test]
    fn users_are_found_as_the_image_says() {
        let spec = |uid: Option<i64>, gid: Option<i64>| UserSpec { uid, gid, ..Default::default() };
        for (image, spec, want) in [
            ("", spec(None, None), (0, 0, vec![0])),
            ("web", spec(None, None), (101, 102, vec![102, 200])),
            ("web:logs", spec(None, None), (101, 200, vec![200])),
            ("1000", spec(None, None), (1000, 0, vec![0])),
            ("1000:1001", spec(None, None), (1000, 1001, vec![1001])),
            ("web", spec(Some(0), None), (0, 0, vec![0])),
            ("nobody-there", spec(Some(101), Some(7)), (101, 7, vec![7, 200])),
        ] {
            let got = resolve_in(PASSWD, GROUP, image, &spec).unwrap();
            assert_eq!((got.uid, got.gid, got.additional), want, "{image}");
        }
    }

    #[test]
    fn what_cannot_be_a_user_is_refused() {
        let plain = UserSpec::default();
        for image in ["ghost", "web:ghosts", "2147483648", "4294967296", "99999999999999999999"] {
            assert!(resolve_in(PASSWD, GROUP, image, &plain).is_err(), "{image}");
        }
        let careful = UserSpec { must_not_be_root: true, ..Default::default() };
        assert!(resolve_in(PASSWD, GROUP, "root", &careful).is_err());
        assert!(resolve_in(PASSWD, GROUP, "web", &careful).is_ok());
        assert!(resolve_in(PASSWD, GROUP, "", &UserSpec { uid: Some(-1), ..Default::default() }).is_err());
    }
}
