//! Users and groups by name, as an image's `User` has them: looked up in the container's own `/etc/passwd` and `/etc/group`
//! (passwd(5), group(5)).

use crate::User;

/// A name that nobody has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// A user's.
    #[error("user {0:?} is not in /etc/passwd")]
    User(String),
    /// A group's.
    #[error("group {0:?} is not in /etc/group")]
    Group(String),
}

/// The user that `text` names: `name`, `name:group`, or numbers in either place; empty for root. A user by name brings the
/// groups that list it; a number that nobody has is itself, with group 0.
pub fn look_up(text: &str, passwd: &str, group: &str) -> Result<User, Unknown> {
    let (name, wanted_group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    // name:password:UID:GID:comment:home:shell
    let account = lines(passwd).find_map(|fields| {
        let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        (fields.first() == Some(&name) || number == Some(uid)).then(|| (fields[0], uid, gid))
    });
    let (login, uid, gid) = match (account, number) {
        (Some((login, uid, gid)), _) => (Some(login), uid, gid),
        (None, Some(uid)) => (None, uid, 0),
        (None, None) => return Err(Unknown::User(name.to_owned())),
    };
    // name:password:GID:members
    let groups = || {
        lines(group)
            .filter_map(|fields| Some((*fields.first()?, fields.get(2)?.parse::<u32>().ok()?, fields)))
    };
    let (gid, additional_gids) = match wanted_group {
        Some(wanted) => {
            let known = groups().find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid);
            let gid = known.or_else(|| wanted.parse().ok());
            let missing = || Unknown::Group(wanted.to_owned());
            (gid.ok_or_else(missing)?, Vec::new())
        }
        None => {
            let member = |fields: &[&str]| {
                let members = fields.get(3).copied().unwrap_or_default();
                login.is_some_and(|login| members.split(',').any(|member| member == login))
            };
            let additional = groups().filter(|(_, other, fields)| *other != gid && member(fields));
            (gid, additional.map(|(_, gid, _)| gid).collect())
        }
    };
    Ok(User {
        uid,
        gid,
        additional_gids,
        umask: None,
    })
}

/// The home directory of a user by number, if `passwd` has one.
pub fn home(uid: u32, passwd: &str) -> Option<&str> {
    let home = |fields: Vec<_>| Some((fields.get(2).copied()?, fields.get(5).copied()?));
    let mut homes = lines(passwd).filter_map(home);
    let (_, home) = homes.find(|(number, _): &(&str, &str)| number.parse() == Ok(uid))?;
    home.starts_with('/').then_some(home)
}

fn lines(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().map(|line| line.trim_end().split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nnobody:x:65534:65533:nobody:/:/bin/false\n";
    const GROUP: &str = "root:x:0:\naudio:x:29:nobody,other\nnogroup:x:65533:nobody\nvideo:x:44:other\n";

    fn found(text: &str) -> (u32, u32, Vec<u32>) {
        let user = look_up(text, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.additional_gids)
    }

    #[test]
    fn users_are_names_or_numbers() {
        assert_eq!(found(""), (0, 0, vec![]));
        assert_eq!(found("nobody"), (65534, 65533, vec![29]));
        assert_eq!(found("65534"), (65534, 65533, vec![29]));
        assert_eq!(found("nobody:video"), (65534, 44, vec![]));
        assert_eq!(found("1000"), (1000, 0, vec![]));
        assert_eq!(found("1000:1001"), (1000, 1001, vec![]));
        assert_eq!(found(":44"), (0, 44, vec![]));
    }

    #[test]
    fn homes_are_found_by_number() {
        assert_eq!(home(0, PASSWD), Some("/root"));
        assert_eq!(home(65534, PASSWD), Some("/"));
        assert_eq!(home(7, PASSWD), None);
        assert_eq!(home(1, "a:x:1:1::relative:\n"), None);
    }

    #[test]
    fn unknown_names_are_errors() {
        let message = |text| look_up(text, PASSWD, GROUP).unwrap_err().to_string();
        assert_eq!(message("ghost"), "user \"ghost\" is not in /etc/passwd");
        assert_eq!(message("root:ghosts"), "group \"ghosts\" is not in /etc/group");
        assert!(look_up("-1", PASSWD, GROUP).is_err());
    }
}
