"""--modelserve-endpoint: the model that the fixture `modelserve_endpoint` serves, and contracts with a URL."""

import numpy as np
import pytest

from tests.serving.v2_server import V2Server


@pytest.fixture
def server():
    with V2Server(lambda feed: {"y": 2 * feed["x"]}, {"x": ("FP32", [-1, 2])}, {"y": ("FP32", [-1, 2])}) as running:
        yield running


@pytest.fixture
def project(pytester):
    pytester.makepyfile("""
        import numpy as np

        def test_served(modelserve_endpoint):
            assert modelserve_endpoint.predict(np.ones((1, 2), np.float32))["y"].tolist() == [[2, 2]]
    """)
    return pytester


def test_the_fixture_serves_the_model_of_the_option_and_of_the_ini_file(project, server):
    project.runpytest_inprocess("--modelserve-endpoint", server.url).assert_outcomes(passed=1)
    project.runpytest_inprocess("-o", f"modelserve_endpoint={server.url}").assert_outcomes(passed=1)


def test_without_the_option_tests_of_the_endpoint_are_skipped_by_name(project):
    result = project.runpytest_inprocess("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*--modelserve-endpoint names no model*"])


def test_settings_are_given_by_a_fixture(project, server, monkeypatch):
    monkeypatch.setenv("MODEL_TOKEN", "s3cret-t0ken")
    project.makeconftest("""
        import pytest

        @pytest.fixture(scope="session")
        def modelserve_endpoint_settings():
            return {"headers": {"Authorization": "Bearer $MODEL_TOKEN"}}
    """)
    project.runpytest_inprocess("--modelserve-endpoint", server.url).assert_outcomes(passed=1)
    assert server.requests[-1][2]["Authorization"] == "Bearer s3cret-t0ken"


def test_no_server_is_named(project):
    result = project.runpytest_inprocess("--modelserve-endpoint", "http://127.0.0.1:1/v2/models/m")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E *EndpointError: no server listens at http://127.0.0.1:1: start it*"])


def test_a_contract_names_a_url_as_its_subject(pytester, server):
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    np.savez(pytester.path / "rows.npz", x=rows)
    np.save(pytester.path / "expected.npy", 2 * rows)
    pytester.path.joinpath("served.modelgate.toml").write_text(
        f"""
        subject = "{server.url}"
        reference = "expected.npy"
        data = "rows.npz"
        [gates.output_parity]
        rtol = 1e-6
        atol = 0.0
        """
    )
    result = pytester.runpytest_inprocess("served.modelgate.toml", "-rA")
    result.assert_outcomes(passed=1)


def test_secrets_of_headers_stand_in_no_report(pytester, server, monkeypatch):
    monkeypatch.setenv("MODEL_TOKEN", "s3cret-t0ken")

    def refuse(handler, body):
        handler.send({"error": f"bad token {handler.headers['Authorization']}"}, 403)

    server.faults["infer"] = refuse
    pytester.makepyfile(f"""
        import numpy as np
        import pytest_modelserve as ms

        def test_served():
            endpoint = ms.Endpoint({server.url!r}, headers={{"Authorization": "Bearer $MODEL_TOKEN"}})
            with ms.serve(endpoint) as predictor:
                ms.assert_latency(predictor, np.ones((1, 2), np.float32), max_ms=1)
    """)
    reports = ("--modelserve-json=e.json", "--modelserve-html=e.html", "--junit-xml=j.xml", "--showlocals", "--tb=long")
    result = pytester.runpytest_inprocess(*reports)
    result.assert_outcomes(failed=1)
    texts = [result.stdout.str(), *(pytester.path.joinpath(name).read_text() for name in ("e.json", "e.html", "j.xml"))]
    assert "status 403: bad token ***" in texts[0]
    assert not any("s3cret" in text for text in texts)
