use proptest::prelude::*;

use super::*;

fn lines(path: &str, text: &str) -> Vec<(String, usize, usize, usize)> {
    let all = definitions(path, text).unwrap();
    all.into_iter().map(|d| (d.name, d.first, d.head_last, d.last)).collect()
}

fn names(path: &str, text: &str) -> String {
    definitions(path, text).unwrap().into_iter().map(|d| d.name).collect::<Vec<_>>().join(" ")
}

#[test]
fn python_nesting_decorators_and_module_level() {
    let text = "import x\n\n@deco\nclass A(B):\n    y = 1\n\n    @property\n    def f(\n        self,\n    ):\n        # why\n        def g():\n            pass\n        return g\n\n\nif x:\n    async def h(): pass\n";
    let expected = [("A", 3, 4, 14), ("A.f", 7, 10, 14), ("A.f.g", 12, 12, 13), ("h", 18, 18, 18)];
    assert_eq!(lines("a.py", text), expected.map(|(n, a, b, c)| (n.to_owned(), a, b, c)));
    let all = definitions("a.py", text).unwrap();
    let targets: Vec<&str> = [1, 3, 5, 7, 11, 13, 14, 16, 18].into_iter().map(|l| target_of_line(&all, l)).collect();
    assert_eq!(targets, [MODULE, "A", "A", "A.f", "A.f", "A.f.g", "A.f", MODULE, "h"]);
    assert_eq!(top_level_names("a.py", text), ["A", "h"]);
}

#[test]
fn what_does_not_parse_and_what_is_not_known() {
    assert!(names("a.py", "def f(:\n  x\nclass C:\n    def g(self): pass\n").contains("C.g"));
    assert_eq!(definitions("a.py", "").unwrap(), []);
    assert_eq!(lines("a.py", "def f():\r\n    x\r\n"), [("f".to_owned(), 1, 1, 2)]);
    assert!(definitions("a.toml", "x = 1").is_none() && definitions("a.rb", "def f\nend").is_none());
}

#[cfg(feature = "grammars")]
#[test]
fn other_languages_by_the_same_code() {
    let rust = "#[derive(Debug)]\npub struct A<T>(T);\nimpl<T> Tr for A<T> {\n    #[inline]\n    fn f(&self) {\n        fn g() {}\n    }\n}\nmod m { fn h() {} }\ntrait Tr { fn f(&self); }\n";
    assert_eq!(names("a.rs", rust), "A A A.f A.f.g m m.h Tr Tr.f");
    assert_eq!(lines("a.rs", rust)[2].1, 4);
    let js = "export default class A {\n  m() {}\n  h = () => 1;\n}\nexport const g = async () => { function in1() {} }\nfunction k() {}\nconst o = { p: function () {} };\nlet v = 1;\n";
    assert_eq!(names("a.js", js), "A A.m A.h g g.in1 k p");
    let ts =
        "namespace N { export interface I { m(): void } }\nabstract class B { @dec() n(): void {} }\nfunction f<T>(x: T): T { return x }\n";
    assert_eq!(names("a.ts", ts), "N N.I N.I.m B B.n f");
    assert_eq!(names("a.tsx", "const App = () => <div/>;\n"), "App");
    let go = "package p\ntype T struct{}\nfunc Run(x int) {}\nfunc (t *T) Close() {}\nfunc (l List[E]) Len() {}\n";
    assert_eq!(names("a.go", go), "T Run T.Close List.Len");
    let java = "@X\nclass A {\n  A() {}\n  @Override\n  public int f() { return 1; }\n  interface B { void g(); }\n}\n";
    assert_eq!(names("A.java", java), "A A.A A.f A.B A.B.g");
    let c = "#define MAX(a, b) a\nstatic int *add(int a)\n{\n  return 0;\n}\nstruct point { int x; };\nstruct point p;\nint g(void);\n";
    assert_eq!(names("a.c", c), "MAX add point");
    let cpp = "namespace ns {\ntemplate <class T>\nclass A {\n  void f() {}\n  ~A() {}\n};\n}\nint &ns::A::g(int x) { return x; }\n";
    assert_eq!(names("a.cpp", cpp), "ns ns.A ns.A.f ns.A.~A ns.A.g");
    assert_eq!(lines("a.cpp", cpp)[1].1, 2);
}

proptest! {
    #[test]
    fn never_panics(text in "(def |class |@d\n|func \\(|impl |fn |\"\"\"|'|\"|\\\\|#define |=> |[a-zé (){}:;*<>,=]|\n    ?|\r){0,60}") {
        for path in ["a.py", "a.rs", "a.c", "a.h", "a.cpp", "a.go", "a.js", "a.ts", "a.tsx", "A.java"] {
            let count = text.split('\n').count();
            for d in definitions(path, &text).unwrap_or_default() {
                prop_assert!(1 <= d.first && d.first <= d.head_last && d.head_last <= d.last && d.last <= count.max(1));
            }
        }
    }
}
