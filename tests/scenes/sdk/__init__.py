import pytest

pytest.register_assert_rewrite("tests.scenes.sdk.sides")
