"""What a user touches: the Recommender and the model card."""

from genrec.serving.recommender import Ask, Explanation, Recommendation, Recommender

__all__ = ["Ask", "Explanation", "Recommendation", "Recommender"]
