from test_faults import *  # noqa


def test_one(bench):
    one = bench("attack")
    print(list(enumerate(one.operations, 1)))
    one.fresh()
    ended = one.run(fault=Fault(BROKEN, 14))
    print(ended)
    for p in one.folder.rglob("*"):
        print(p)
    assert 0
