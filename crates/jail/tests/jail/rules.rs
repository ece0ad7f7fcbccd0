//! Rules that cannot be a filter.

use dormouse_jail::{Error, Filter, Rule};
use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    let ioctl = libc::SYS_ioctl;
    let cases = [
        (
            "refused and allowed",
            vec![Rule::allow(ioctl), Rule::refuse(ioctl, libc::EPERM)],
        ),
        (
            "refused in two ways",
            vec![
                Rule::refuse(ioctl, libc::EPERM),
                Rule::refuse(ioctl, libc::ENOSYS),
            ],
        ),
        (
            "refused and looked at",
            vec![
                Rule::refuse(ioctl, libc::EPERM),
                Rule::allow_values(ioctl, 1, &[1]),
            ],
        ),
        (
            "allowed and looked at",
            vec![Rule::allow_values(ioctl, 1, &[1]), Rule::allow(ioctl)],
        ),
        ("no value", vec![Rule::allow_values(ioctl, 1, &[])]),
        ("no such number", vec![Rule::allow(-1)]),
    ];
    let mut tests: Vec<_> = cases
        .into_iter()
        .map(|(name, rules)| {
            Trial::test(format!("rules::{name}"), move || {
                let error = Filter::compile(&rules).expect_err("it is no filter");
                let call = if name == "no such number" { -1 } else { ioctl };
                assert!(
                    matches!(&error, Error::Rule { call: of, .. } if *of == call),
                    "{error}"
                );
                Ok(())
            })
        })
        .collect();
    tests.push(Trial::test("rules::no such argument", move || {
        let rules = [Rule::allow_masked(ioctl, 6, 1, 1)];
        let error = Filter::compile(&rules).expect_err("there are six");
        assert!(matches!(&error, Error::Compile(_)), "{error}");
        Ok(())
    }));
    tests.push(Trial::test("rules::too many", || {
        let rules: Vec<_> = (0..2000).map(Rule::allow).collect();
        let error = Filter::compile(&rules).expect_err("the kernel takes 4096 instructions");
        assert!(matches!(&error, Error::Compile(_)), "{error}");
        Ok(())
    }));
    tests.push(Trial::test("rules::said twice is said once", || {
        let mut rules = Rule::runtime();
        rules.extend(Rule::runtime());
        Filter::compile(&rules)?;
        Ok(())
    }));
    tests
}
