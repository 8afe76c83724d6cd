import java.util.*;
import java.util.stream.*;
/** Makes a text of words, counts them, sorts them, prints the most frequent, and waits. */
public class Words {
    public static void main(String[] arguments) throws InterruptedException {
        Random random = new Random(1);
        List<String> text = random.ints(200_000, 0, 5_000).mapToObj(n -> "w" + n * n % 4999).collect(Collectors.toList());
        Map<String, Integer> counts = new HashMap<>();
        text.forEach(word -> counts.merge(word, 1, Integer::sum));
        String top = counts.entrySet().stream().sorted(Map.Entry.<String, Integer>comparingByValue().reversed()).limit(3).map(Object::toString).collect(Collectors.joining(" "));
        System.out.println(top);
        Thread.sleep(Long.MAX_VALUE);
    }
}
