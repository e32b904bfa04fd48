//! Users and groups by name, as an image's `User` has them: looked up in the container's own `/etc/passwd` and `/etc/group`
//! (passwd(5), group(5)).

use crate::failure::{Failure, Result};
use workload::User;

/// The user that `text` names: `name`, `name:group`, or numbers in either place; empty for root. A user by name brings the
/// groups that list it; a number that nobody has is itself, with group 0.
pub fn look_up(text: &str, passwd: &str, group: &str) -> Result<User> {
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
        (None, None) => return Err(Failure::other(format!("user {name:?} is not in /etc/passwd"))),
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
            let missing = || Failure::other(format!("group {wanted:?} is not in /etc/group"));
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
    fn unknown_names_are_errors() {
        let message = |text| look_up(text, PASSWD, GROUP).unwrap_err().message;
        assert_eq!(message("ghost"), "user \"ghost\" is not in /etc/passwd");
        assert_eq!(message("root:ghosts"), "group \"ghosts\" is not in /etc/group");
        assert!(look_up("-1", PASSWD, GROUP).is_err());
    }
}
