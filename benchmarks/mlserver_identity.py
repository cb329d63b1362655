"""MLServer's identity runtime: answers with its input. Runs inside MLServer's own virtual environment."""

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Identity(MLModel):  # type: ignore[misc]  # mlserver is not installed where this is type-checked
    """The cheapest model that MLServer can serve."""

    async def load(self) -> bool:
        """Load nothing."""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer with the input, built without validation: that would cost more than everything else here."""
        tensor = payload.inputs[0]
        output = ResponseOutput.model_construct(
            name="OUTPUT0", shape=tensor.shape, datatype=tensor.datatype, data=tensor.data
        )
        return InferenceResponse.model_construct(model_name=self.name, id=payload.id, outputs=[output])
