"""What a user touches: the Recommender and the model card."""

from genrec.serving.recommender import Recommendation, Recommender

__all__ = ["Recommendation", "Recommender"]
