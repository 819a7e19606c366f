//! `tidegate catalog` and `tidegate migrate`, as they are typed.

use super::support::run;

#[test]
fn a_shop_is_made_up_and_taken_in_and_twice_is_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (data, file) = (at("data"), at("shop.jsonl"));
    let (code, _, err) = run(&["catalog", "demo", "--products", "300", "--seed", "9", "--output", &file]);
    assert_eq!(code, Some(0), "{err}");
    let (_, again, _) = run(&["catalog", "demo", "--products", "300", "--seed", "9", "--output", "-"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), again, "the same seed is the same shop");
    let (code, out, err) = run(&["--data", &data, "migrate"]);
    assert!(code == Some(0) && out.contains("up to date") && out.contains("applied"), "{out}{err}");
    let (code, out, err) = run(&["--data", &data, "catalog", "import", &file]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("300 products are new, 0 changed, 0 were there; 0 bad"), "{out}");
    let (code, out, _) = run(&["--data", &data, "catalog", "demo", "--products", "300", "--seed", "9"]);
    assert_eq!(code, Some(0));
    assert!(out.starts_with("0 products are new, 0 changed, 300 were there"), "{out}");
}

#[test]
fn bad_lines_are_named_at_the_end_and_the_rest_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (data, file) = (at("data"), at("shop.csv"));
    std::fs::write(&file, "id,name,price,stock\n1,Shoe,19.90,3\n2,,x,-1\n3,Hat,5,0\n3 4,Bag,1,1\n").unwrap();
    let (code, out, err) = run(&["--data", &data, "catalog", "import", &file]);
    assert_eq!(code, Some(1));
    assert!(out.starts_with("2 products are new, 0 changed, 0 were there; 2 bad lines"), "{out}");
    assert!(
        err.contains("line 3: ") && err.contains("name: ") && err.contains("price: ") && err.contains("stock: "),
        "{err}"
    );
    assert!(err.contains("line 5: id: "), "{err}");
    let (code, _, err) = run(&["--data", &data, "catalog", "import", &at("nosuch")]);
    assert!(code == Some(1) && err.contains("cannot be opened"), "{err}");
}
